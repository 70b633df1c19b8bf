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

/// A property that does not hold, and the steps to a state that shows it.
pub(crate) type Violation<M> = (&'static str, Vec<<M as Model>::Action>);

impl Explorable for Protocol {}
impl Explorable for Recipe {}
