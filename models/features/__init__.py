"""What the models see, one module per kind of model: the same code for serving and for training.

Every feature is read from `nearcast.customer.Customer` as `nearcast.fold` left it, so it means the same live, in replay
and in training. Pure: no I/O, no clock, no third-party imports. Every value is finite, for any customer.
"""
