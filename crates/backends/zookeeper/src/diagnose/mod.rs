//! `tenure doctor`: diagnoses of the servers and of the znodes.

pub(crate) mod servers;
mod znodes;

use tenure_core::Diagnosis;

use crate::election::store::ElectionStore;

pub(crate) async fn diagnose(store: &ElectionStore) -> Vec<Diagnosis> {
    let mut diagnoses = servers::diagnose(&store.ensemble).await;
    diagnoses.extend(znodes::diagnose(store).await);
    diagnoses
}
