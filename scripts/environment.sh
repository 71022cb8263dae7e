# Sourced by quickstart.sh and test.sh: `environment FOLDER FILE...` makes a virtual environment from requirements files
# and activates it. One that was made from the same files is used as it is.
environment() {
  local folder=$1 wanted
  shift
  wanted=$(cat "$@" | sha256sum)
  if [[ ! -f $folder/made-from || $(<"$folder/made-from") != "$wanted" ]]; then
    echo "making $folder (once): $*"
    "${PYTHON:-python3}" -m venv --clear "$folder"
    # torch first and alone: its exact version is not up for choice when the others are resolved
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)"
    "$folder/bin/pip" install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    echo "$wanted" > "$folder/made-from"
  fi
  source "$folder/bin/activate"
}
