"""What depends on the machine: precision, compiling, sharding, batch statistics, cheap steps."""
