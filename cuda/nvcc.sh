#!/bin/sh
# Runs the compiler that follows, and fails where ptxas has put the products of a warpgroup one after the other, or a wait
# between them that is not in the source (C7508, C7510 to C7519). ptxas only tells so, and no option makes it an error.
said=$(mktemp) || exit 1
"$@" 2> "$said"
status=$?
cat "$said" >&2
if [ "$status" = 0 ] && grep -Eq '\(C75(08|1[0-9])\)' "$said"; then
  status=1
  echo "dhp_jax: ptxas runs products of a warpgroup one after the other (C75xx above). Do not touch their registers" \
    "between fence and wait, and use fewer." >&2
  while [ "$#" -gt 1 ]; do # what was made must not pass for done
    if [ "$1" = -o ]; then rm -f "$2"; fi
    shift
  done
fi
rm -f "$said"
exit "$status"
