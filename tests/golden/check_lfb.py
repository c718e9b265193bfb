"""Checkers of the golden cases of lfb."""

import check_lfb_bank
import check_lfb_data
import check_lfb_model

CHECKERS = {**check_lfb_bank.CHECKERS, **check_lfb_data.CHECKERS, **check_lfb_model.CHECKERS}
