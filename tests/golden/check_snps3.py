"""Checkers of the golden cases of snps3."""

import check_snps3_losses
import check_snps3_text
import check_snps3_words

CHECKERS = {**check_snps3_losses.CHECKERS, **check_snps3_text.CHECKERS, **check_snps3_words.CHECKERS}
