# An instance lives for hours and is replaced by a newer image: it never updates itself, least of all while it boots.
cat > /etc/cloud/cloud.cfg.d/99-spindrift.cfg <<'EOF'
repo_update: false
repo_upgrade: none
package_update: false
package_upgrade: false
EOF
# Nobody logs in (there is no key and no way in), and nobody reads news or searches for packages. What this base image
# has not is masked all the same: it may come with the next.
systemctl mask sshd.service update-motd.timer dnf-makecache.timer dnf-automatic.timer dnf-automatic-install.timer
