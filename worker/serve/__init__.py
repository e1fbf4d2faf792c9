"""What `ops serve` answers: one module per door."""
