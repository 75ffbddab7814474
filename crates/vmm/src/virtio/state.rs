//! What devices save.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::DeviceType;
use super::block::BlockState;
use super::console::ConsoleState;
use super::net::NetState;
use super::rng::RngState;
use super::vsock::VsockState;

/// The state of a device of any type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Of a disk.
    Block(BlockState),
    /// Of a console.
    Console(ConsoleState),
    /// Of a network card.
    Net(NetState),
    /// Of an entropy source.
    Rng(RngState),
    /// Of sockets.
    Vsock(VsockState),
}

/// Why a saved state can not be taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The snapshot has another device in this place.
    #[error("the saved state is not one of a {0:?} device")]
    Type(DeviceType),
    /// The snapshot was made with other options.
    #[error("the saved device does not fit: {0}")]
    Mismatch(&'static str),
}
