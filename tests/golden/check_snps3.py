"""Checkers of the golden cases of snps3."""

import check_snps3_text

CHECKERS = {**check_snps3_text.CHECKERS}
