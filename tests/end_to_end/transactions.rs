//! Transactions: in commit order, whole, however large.
