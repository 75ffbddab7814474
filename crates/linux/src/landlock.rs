//! Landlock, landlock(7): whether the kernel has it. The rules themselves are made by a library.

/// LANDLOCK_CREATE_RULESET_VERSION
const VERSION: libc::c_long = 1;

/// The version of the interface; 0 where the kernel has no landlock, or it is switched off.
pub fn version() -> u32 {
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads nothing from the null pointer, and makes no descriptor.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_that_of_a_kernel() {
        // The first kernel with landlock has 1, and each version was one step.
        assert!(super::version() < 64, "{}", super::version());
    }
}
