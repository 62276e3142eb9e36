image='${WorkerImage}'
registry=$(printf '%s' "$image" | cut -d / -f 1)
# Docker keeps what it logs in with beside its configuration: not in the image.
DOCKER_CONFIG=$(mktemp -d)
export DOCKER_CONFIG
trap 'rm -rf "$DOCKER_CONFIG"' EXIT
case $registry in
  *.dkr.ecr.*)
    region=$(printf '%s' "$registry" | cut -d . -f 4)
    signed "$region:ecr" -X POST -H "content-type: application/x-amz-json-1.1" \
      -H "x-amz-target: AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken" -d '{}' \
      "https://api.ecr.$region.${AWS::URLSuffix}/" |
      sed -n 's/.*"authorizationToken" *: *"\([^"]*\)".*/\1/p' | base64 -d | cut -d : -f 2- |
      docker login --username AWS --password-stdin "$registry"
    ;;
esac
docker pull --quiet "$image"
