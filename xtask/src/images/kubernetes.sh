# Builds `kube-apiserver` and `go-candidate` from Debian's source package of Kubernetes, and installs both. Runs inside the
# image, as root; $1 is a folder with candidate.go. The compiler and the sources are unpacked there only.
set -eu
work=$1
mkdir -p "$work/parts" "$work/lists/partial" "$work/gopath/src/k8s.io/kubernetes" "$work/bin" "$work/tmp"
cd "$work"

# The source package comes from where the packages come from.
for file in /etc/apt/sources.list.d/*.sources; do
    if [ -e "$file" ]; then sed 's/^Types:.*/Types: deb deb-src/' "$file" >"parts/${file##*/}"; fi
done
if [ -e /etc/apt/sources.list ]; then sed 's/^deb \(.*\)/&\ndeb-src \1/' /etc/apt/sources.list >parts/main.list; fi
apt() {
    apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/parts" -o Dir::State::Lists="$work/lists" \
        -o APT::Sandbox::User=root "$@"
}
apt update
apt source --download-only kubernetes
apt download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev
for package in golang-*.deb; do dpkg -x "$package" go; done
tar --extract --gzip --file kubernetes_*.orig.tar.gz --strip-components=1 --directory gopath/src/k8s.io/kubernetes

# The packaged reflect2 reads invalid memory when compiled with Go 1.18 or later; replace it.
library=github.com/modern-go/reflect2
rm -r "gopath/src/k8s.io/kubernetes/vendor/$library"
cp -r "go/usr/share/gocode/src/$library" "gopath/src/k8s.io/kubernetes/vendor/$library"

export GOROOT="$work/go/usr/lib/go-1.19" GOPATH="$work/gopath" GOCACHE="$work/cache" TMPDIR="$work/tmp"
export GO111MODULE=off CGO_ENABLED=0 PATH="$GOROOT/bin:$PATH"
cd "$GOPATH/src/k8s.io/kubernetes"
mkdir -p cmd/go-candidate pkg/generated/openapi
cp "$work/candidate.go" cmd/go-candidate/main.go

# The package lacks this generated file.
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
folders=$(grep --include='*.go' -rlE '^// \+k8s:openapi-gen=' pkg cmd staging/src/k8s.io vendor/k8s.io/kube-openapi |
    grep -vE 'code-generator|sample-apiserver|_test.go|/testdata/|openapi-gen/test|kube-openapi/test' | xargs -n1 dirname | sort -u |
    sed -e 's#^staging/src/##' -e 's#^vendor/##' -e 's#^\(pkg\|cmd\)/#k8s.io/kubernetes/\1/#' | paste -sd,)
"$work/openapi-gen" -O zz_generated.openapi --go-header-file hack/boilerplate/boilerplate.generatego.txt \
    --output-base "$GOPATH/src" --output-package k8s.io/kubernetes/pkg/generated/openapi --input-dirs "$folders" \
    --report-filename "$work/report"

version=k8s.io/kubernetes/vendor/k8s.io/component-base/version
go build -tags providerless -gcflags=all=-dwarf=false \
    -ldflags "-s -w -X $version.gitVersion=v1.20.2 -X $version.gitMajor=1 -X $version.gitMinor=20" \
    -o "$work/bin/" ./cmd/kube-apiserver ./cmd/go-candidate
install "$work/bin/kube-apiserver" "$work/bin/go-candidate" /usr/local/bin
