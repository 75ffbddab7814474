//! The engine of an ordinary user.

/// Whether this process is root only within a user namespace.
pub fn is_inside() -> bool {
    moat_linux::credentials::in_user_namespace().unwrap_or(false)
}
