"""The laptop's AWS: an emulator answers the API, our modules play what it lacks, the product runs unmodified."""
