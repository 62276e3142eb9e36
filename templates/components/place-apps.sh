# place NAME FAMILY KEY: an archive of the assets bucket. One that tar cannot read fails the build.
place() {
  mkdir -p "/opt/spindrift/apps/$1"
  fetch "$3" "/opt/spindrift/apps/$1/$2"
  tar --list --file "/opt/spindrift/apps/$1/$2" > /dev/null
}
{PLACED}
