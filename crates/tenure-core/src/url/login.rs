//! The user and password of a store URL. The password is in the URL, in a file or in an environment variable.

use std::{env, fmt};

use super::{InvalidUrl, Password, Secret, StoreUrl};

impl StoreUrl {
    /// The user and the password, if there are any: `user:password@host`, or `user@host` with one of the settings
    /// `password_file` (a file, [read again](Password::from_file) when it rotates) and `password_env` (the name of an environment
    /// variable).
    ///
    /// A password in a URL that is passed as an argument is visible to everyone who can list processes.
    ///
    /// # Errors
    /// When only one of user and password is given, when the password is given twice, or when its file or variable cannot be
    /// read.
    pub fn login(&self) -> Result<Option<(String, Password)>, InvalidUrl> {
        let scheme = self.scheme();
        match (self.user(), self.password_alone()?) {
            (Some(user), Some(password)) => Ok(Some((user.to_owned(), password))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.invalid(format!(
                "it has a user but no password; give {scheme}://user:password@host, password_file=/path or password_env=NAME"
            ))),
            (None, Some(_)) => {
                Err(self.invalid(format!("it has a password but no user; give {scheme}://user@host")))
            }
        }
    }

    /// The password of [`login`](Self::login) whether or not there is a user: for stores that know their clients by a token.
    ///
    /// # Errors
    /// When the password is given twice, or when its file or variable cannot be read.
    pub fn password_alone(&self) -> Result<Option<Password>, InvalidUrl> {
        let (file, variable) = (self.text("password_file"), self.text("password_env"));
        Ok(match (self.password(), file, variable) {
            (None, None, None) => None,
            (Some(password), None, None) => Some(password.clone().into()),
            (None, Some(file), None) => {
                let read = Password::from_file(file);
                Some(read.map_err(|reason| self.invalid(format!("password_file={file} {reason}")))?)
            }
            (None, None, Some(variable)) => {
                let described = DescribedVariable(variable);
                match env::var_os(variable).map(|text| text.into_string()) {
                    Some(Ok(text)) => Some(Secret::new(text).into()),
                    // Its content is not shown.
                    Some(Err(_)) => return Err(self.invalid(format!("{described} is not UTF-8"))),
                    None => return Err(self.invalid(format!("{described} is not set"))),
                }
            }
            _ => {
                return Err(self.invalid(
                    "it has more than one of a password, a password_file and a password_env; give one",
                ));
            }
        })
    }
}

/// Prints the name of the variable, unless it is not spelled like one: it may be a password then.
struct DescribedVariable<'a>(&'a str);

impl fmt::Display for DescribedVariable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_usual = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        match self.0.chars().all(is_usual) {
            true => write!(f, "the variable of password_env={}", self.0),
            false => f.write_str("the variable named by password_env"),
        }
    }
}
