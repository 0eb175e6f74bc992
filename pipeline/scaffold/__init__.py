"""Write a first config and the sample corpus."""
