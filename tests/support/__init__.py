"""What several tests use. Nothing here is a test."""
