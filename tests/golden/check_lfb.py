"""Checkers of the golden cases of lfb."""

import check_lfb_data

CHECKERS = {**check_lfb_data.CHECKERS}
