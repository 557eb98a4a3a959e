"""What `maskco-fast bench` times, and how: rows, parity gate, harness, stages and report."""
