"""What `maskco-fast bench` times and how: rows, peers, harness and the native path's stages."""
