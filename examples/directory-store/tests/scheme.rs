//! A program that uses the store by its scheme.

use tenure::Registry;

#[tokio::test]
async fn a_program_connects_by_the_scheme() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let mut registry = Registry::builtin();
    registry.register("directory", directory_store::open)?;
    let url = format!("directory:{}?ttl=5s&poll_interval=20ms", directory.path().display());
    let (one, two) = (registry.connect(&url).await?, registry.connect(&url).await?);

    let leadership = one.campaign("billing").await?;
    assert!(two.try_campaign("billing").await?.is_none());
    let token = leadership.fencing_token();
    let (next, resigned) = tokio::join!(two.campaign("billing"), leadership.resign());
    resigned?;
    let next = next?;
    assert!(next.fencing_token() > token);
    next.resign().await?;
    Ok(())
}
