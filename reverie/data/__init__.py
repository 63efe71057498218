"""Memory of experience: the replay, episodes on disk, Minari in and out."""
