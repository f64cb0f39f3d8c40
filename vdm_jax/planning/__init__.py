"""What a program costs on a pod, computed without one."""
