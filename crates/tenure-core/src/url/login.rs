//! Who a store URL says we are: a user, with a password from the URL, from a file, or from the environment.

use std::{env, fmt};

use super::{InvalidUrl, Password, Secret, StoreUrl};

impl StoreUrl {
    /// The user and the password, if there are any: `user:password@host`, or `user@host` with one of the settings
    /// `password_file` ([read again](Password::from_file) when it rotates) and `password_env`, the name of an environment variable.
    ///
    /// A URL with a password in it can be seen by everybody who lists processes, when it is an argument.
    ///
    /// # Errors
    /// When one of the two is missing, the password is given twice, or its file or variable cannot be read.
    pub fn login(&self) -> Result<Option<(String, Password)>, InvalidUrl> {
        let (file, variable) = (self.text("password_file"), self.text("password_env"));
        let scheme = self.scheme();
        let password = match (self.password(), file, variable) {
            (None, None, None) => None,
            (Some(password), None, None) => Some(password.clone().into()),
            (None, Some(file), None) => {
                let read = Password::from_file(file);
                Some(read.map_err(|reason| self.invalid(format!("password_file={file} {reason}")))?)
            }
            (None, None, Some(variable)) => {
                let named = Named(variable);
                match env::var_os(variable).map(|text| text.into_string()) {
                    Some(Ok(text)) => Some(Secret::new(text).into()),
                    // What it holds is not shown.
                    Some(Err(_)) => return Err(self.invalid(format!("{named} is not UTF-8"))),
                    None => return Err(self.invalid(format!("{named} is not set"))),
                }
            }
            _ => {
                return Err(self.invalid(
                    "it has more than one of a password, a password_file and a password_env; give one",
                ));
            }
        };
        match (self.user(), password) {
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
}

/// The variable that a URL names, in words. What is not spelled as variables are may be a password in the name's place.
struct Named<'a>(&'a str);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spelled = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        match self.0.chars().all(spelled) {
            true => write!(f, "the variable of password_env={}", self.0),
            false => f.write_str("the variable that password_env names"),
        }
    }
}
