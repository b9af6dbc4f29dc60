"""What a network is shown: where crops are cut, how they are changed."""
