//! The driver on io_uring.
