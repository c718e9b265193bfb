"""Checkers of the golden cases of snps3."""

import check_snps3_config
import check_snps3_data
import check_snps3_losses
import check_snps3_model
import check_snps3_networks
import check_snps3_text
import check_snps3_words

PARTS = (
    check_snps3_config,
    check_snps3_data,
    check_snps3_losses,
    check_snps3_model,
    check_snps3_networks,
    check_snps3_text,
    check_snps3_words,
)
CHECKERS = {name: check for part in PARTS for name, check in part.CHECKERS.items()}
