#!/usr/bin/env bash
# Make the nltk data folder DIR with WordNet 3.0 from Debian's packages wordnet-base and wordnet-sense-index,
# for hosts that cannot reach nltk's server: .ci/wordnet.sh DIR
set -euo pipefail
source=/usr/share/wordnet target=$1/corpora/wordnet
mkdir -p "$target"
cp $source/{data,index}.* $source/*.exc $source/cntlist* "$target"
# nltk also reads lexnames, which Debian leaves out: the fixed list of the 45 lexicographer files, each with
# its number and the number of its part of speech.
declare -A part=([noun]=1 [verb]=2 [adj]=3 [adv]=4)
number=0
for name in adj.all adj.pert adv.all \
  noun.{Tops,act,animal,artifact,attribute,body,cognition,communication,event,feeling,food,group,location} \
  noun.{motive,object,person,phenomenon,plant,possession,process,quantity,relation,shape,state} \
  noun.{substance,time} verb.{body,change,cognition,communication,competition,consumption,contact,creation} \
  verb.{emotion,motion,perception,possession,social,stative,weather} adj.ppl; do
  printf '%02d\t%s\t%d\n' $((number++)) $name ${part[${name%.*}]}
done >"$target/lexnames"
