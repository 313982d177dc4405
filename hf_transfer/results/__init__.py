"""What came out of a run: metrics, the report, the page, the card, the run's folder.

Must not know how it was trained: page and card are made from `report.json` alone. Light: no torch
at module level. Read `report`, then `run_folder`, then `page` and `card`.
"""
