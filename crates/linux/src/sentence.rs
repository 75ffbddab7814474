//! The errors of the rooms above: sentences, where [`Error`](crate::Error) is a call.

/// Makes a crate's `Error`, the `Result` and `Context` that go with it.
///
/// An error is a sentence about an object, behind the sentences that were put in front of it on its way, with what the
/// user can do, and one more value by which callers choose: the invocation gives the value's name, type and default, the
/// method that sets it, and how far `Context` is to be seen. The type is the crate's own, so that it can have methods and
/// conversions of its own beside these.
///
/// What comes from a system call keeps the name of its errno, as `ENOSPC`.
#[macro_export]
macro_rules! sentence_error {
    ($(#[$attribute:meta])* $visible:vis, $(#[$about:meta])* $field:ident: $kind:ty = $default:expr, $set:ident) => {
        /// What went wrong: sentences from the outermost to the cause.
        $(#[$attribute])*
        pub struct Error {
            chain: Vec<String>,
            hint: Option<String>,
            $(#[$about])*
            $field: $kind,
        }

        /// The result of what this crate does.
        pub type Result<T> = std::result::Result<T, Error>;

        impl Error {
            /// One sentence about an object.
            pub fn new(sentence: impl Into<String>) -> Self {
                Self { chain: vec![sentence.into()], hint: None, $field: $default }
            }

            /// Adds what the user can do about it.
            #[must_use]
            pub fn hint(mut self, hint: impl Into<String>) -> Self {
                self.hint = Some(hint.into());
                self
            }

            /// What the user can do, where something is known.
            pub fn hint_text(&self) -> Option<&str> {
                self.hint.as_deref()
            }

            $(#[$about])*
            #[must_use]
            pub fn $set(mut self, value: $kind) -> Self {
                self.$field = value;
                self
            }

            $(#[$about])*
            pub fn $field(&self) -> $kind {
                self.$field
            }
        }

        impl std::fmt::Display for Error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.chain.join(": "))
            }
        }

        impl std::error::Error for Error {}

        /// Puts a sentence in front of an error.
        $visible trait Context<T> {
            /// `what` names the object; it is evaluated only for an error.
            fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
        }

        impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
            fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
                self.map_err(|error| {
                    let mut error: Error = error.into();
                    error.chain.insert(0, what().into());
                    error
                })
            }
        }

        impl From<std::io::Error> for Error {
            fn from(error: std::io::Error) -> Self {
                // One of ours that travelled through an interface of std comes out as it went in.
                let error = match error.downcast::<Self>() {
                    Ok(own) => return own,
                    Err(error) => error,
                };
                let text = match (error.raw_os_error(), error.get_ref()) {
                    (Some(code), None) => $crate::errno_name($crate::Errno::from_raw_os_error(code)),
                    _ => error.to_string(),
                };
                Self::new(text)
            }
        }
    };
}
