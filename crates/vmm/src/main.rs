//! `moat-vmm`: one microVM, in one process.

fn main() {}
