//! Who a store URL says we are: a user, with a password from the URL or from a file.

use std::fs;

use super::{InvalidUrl, Secret, StoreUrl};

impl StoreUrl {
    /// The user and the password, if there are any: `user:password@host`, or `user@host` with the
    /// setting `password_file`, which is read now; one newline at its end is dropped.
    ///
    /// # Errors
    /// When one of the two is missing, the password is given twice, or the file cannot be read.
    pub fn login(&self) -> Result<Option<(String, Secret)>, InvalidUrl> {
        let file = self.text("password_file");
        let scheme = self.scheme();
        let password = match (self.password(), file) {
            (Some(_), Some(_)) => {
                return Err(self.invalid("it has both a password and a password_file; give one"));
            }
            (Some(password), None) => Some(password.clone()),
            (None, Some(file)) => {
                let text = fs::read_to_string(file)
                    .map_err(|error| self.invalid(format!("password_file={file} cannot be read: {error}")))?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Some(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
            }
            (None, None) => None,
        };
        match (self.user(), password) {
            (Some(user), Some(password)) => Ok(Some((user.to_owned(), password))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.invalid(format!(
                "it has a user but no password; give {scheme}://user:password@host or password_file=/path"
            ))),
            (None, Some(_)) => {
                Err(self.invalid(format!("it has a password_file but no user; give {scheme}://user@host")))
            }
        }
    }
}
