docker image inspect '${WorkerImage}' > /dev/null
