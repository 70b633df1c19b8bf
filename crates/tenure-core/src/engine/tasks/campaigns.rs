//! The commands of campaigns to the task of their elector.

use std::sync::atomic::{AtomicU64, Ordering};

use tenure_mmap::ForkMark;
use tokio::sync::mpsc;

use super::{candidate::Campaign, events::CandidateNumber};
use crate::spi::EntryRequest;

/// Sends campaigns to the task of an elector. The task ends some time after this is dropped.
#[derive(Debug)]
pub(crate) struct Campaigns {
    commands: mpsc::UnboundedSender<Command>,
    last_candidate: AtomicU64,
}

pub(super) enum Command {
    Campaign(CandidateNumber, EntryRequest, Box<Campaign>),
    /// The caller of this campaign has given up.
    GivenUp(CandidateNumber),
}

impl Campaigns {
    /// The sender and the receiver.
    pub(super) fn channel() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        (Self { commands, last_candidate: AtomicU64::new(0) }, receiver)
    }

    /// Starts a campaign, which is given up when the result of this function is dropped.
    pub(crate) fn start(&self, request: EntryRequest, campaign: Campaign) -> GiveUpOnDrop {
        let candidate = self.last_candidate.fetch_add(1, Ordering::Relaxed) + 1;
        // Without the task, this drops the sender of the result.
        let _ = self.commands.send(Command::Campaign(candidate, request, Box::new(campaign)));
        GiveUpOnDrop { candidate, commands: Some(self.commands.clone()) }
    }
}

/// Gives a campaign up when it is dropped, unless the campaign was answered.
pub(crate) struct GiveUpOnDrop {
    candidate: CandidateNumber,
    /// `None` once it was answered.
    commands: Option<mpsc::UnboundedSender<Command>>,
}

impl GiveUpOnDrop {
    /// The caller has the result.
    pub(crate) fn answered(mut self) {
        self.commands = None;
    }
}

impl Drop for Campaigns {
    fn drop(&mut self) {
        // In a forked child no thread runs the task, and a lock may be held by one that does not exist there: the channel is
        // not closed.
        if ForkMark::of_this_process().is_forked() {
            std::mem::forget(self.commands.clone());
        }
    }
}

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        if ForkMark::of_this_process().is_forked() {
            std::mem::forget(self.commands.take());
        }
        if let Some(commands) = &self.commands {
            let _ = commands.send(Command::GivenUp(self.candidate));
        }
    }
}
