//! A model whose states all can be explored.

use std::{fmt::Debug, hash::Hash};

use stateright::Model;

use crate::{cas::Recipe, protocol::Protocol};

pub(crate) trait Explorable:
    Model<State: Clone + Debug + PartialEq + Hash + Send + Sync, Action: Clone + Debug + PartialEq + Send>
    + Send
    + Sync
    + 'static
{
}

impl Explorable for Protocol {}
impl Explorable for Recipe {}
