//! seccomp(2): installing a filter and listening to its notifications.
