"""What a recipe means for a network, without the network: groups, phases, rates, cost, the plan.

Touches no torch and no pixels: a layout, recorded or traced, stands for the network. Read `layout`
and `groups`, then `phases` and `rates`, then `plan`.
"""
