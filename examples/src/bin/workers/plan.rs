//! The assignment of jobs to workers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The worker of each job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan(Vec<String>);

impl Plan {
    /// Distributes the jobs evenly over `workers`, moving as few as possible from their current `holders`.
    pub(crate) fn new(workers: &[String], holders: &[Option<String>]) -> Self {
        if workers.is_empty() {
            return Self(Vec::new());
        }
        let max_per_worker = holders.len().div_ceil(workers.len());
        let mut counts = vec![0; workers.len()];
        let unmoved: Vec<Option<usize>> = holders
            .iter()
            .map(|holder| {
                let index = workers.iter().position(|worker| Some(worker) == holder.as_ref())?;
                (counts[index] < max_per_worker).then(|| {
                    counts[index] += 1;
                    index
                })
            })
            .collect();
        let least_loaded =
            |counts: &[usize]| (0..counts.len()).min_by_key(|index| counts[*index]).unwrap_or_default();
        let mut assigned: Vec<usize> = unmoved
            .into_iter()
            .map(|worker| {
                worker.unwrap_or_else(|| {
                    let index = least_loaded(&counts);
                    counts[index] += 1;
                    index
                })
            })
            .collect();
        // Move jobs until no worker has two more than another.
        loop {
            let (low, high) = (
                least_loaded(&counts),
                (0..counts.len()).max_by_key(|index| counts[*index]).unwrap_or_default(),
            );
            if counts[high] <= counts[low] + 1 {
                break;
            }
            if let Some(moved) = assigned.iter_mut().find(|index| **index == high) {
                *moved = low;
            }
            counts[high] -= 1;
            counts[low] += 1;
        }
        Self(assigned.into_iter().map(|index| workers[index].clone()).collect())
    }

    /// Reads the plan from a leader's value. Returns `None` if the leader has not published one yet.
    pub(crate) fn from_value(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    pub(crate) fn worker(&self, job: usize) -> Option<&String> {
        self.0.get(job)
    }

    pub(crate) fn jobs_of<'a>(&'a self, worker: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.0.iter().enumerate().filter(move |(_, assigned)| *assigned == worker).map(|(job, _)| job)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(workers: &str, holders: &str) -> String {
        let workers: Vec<_> = workers.chars().map(String::from).collect();
        let holders: Vec<_> = holders.chars().map(|c| (c != '-').then(|| c.to_string())).collect();
        Plan::new(&workers, &holders).0.concat()
    }

    #[test]
    fn jobs_are_distributed_evenly_and_few_of_them_move() {
        assert_eq!(plan("abc", "------"), "abcabc");
        assert_eq!(
            plan("ac", "abcabc"),
            "aacacc",
            "a missing worker has no jobs, and the others keep theirs"
        );
        assert_eq!(plan("abc", "aaaaaa"), "aabcbc");
        assert_eq!(plan("abcd", "abcabc"), "abdabc", "a new worker gets one");
        assert_eq!(plan("ab", "aaab-"), "aaabb");
        assert_eq!(plan("", "ab"), "");
        let four = plan("abcd", "aaabbc");
        for worker in "abcd".chars() {
            assert!((1..=2).contains(&four.matches(worker).count()), "{four}");
        }
    }
}
