"""Reading, checking and evaluating Core ML packages on any machine."""
