"""Parts of the system snps3 that move into its folder once the system is complete."""
