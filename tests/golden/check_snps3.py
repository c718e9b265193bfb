"""Checkers of the golden cases of snps3."""

import check_snps3_networks

CHECKERS = {**check_snps3_networks.CHECKERS}
