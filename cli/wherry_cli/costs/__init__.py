"""What it costs to carry a model in a container: the same files run bare, in a container and in a virtual machine."""
