// moa/calibration_text.h: the running text that compress takes where none is given.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace polyspan {

// The prose of an XHTML page made of DocBook: elements of class "para", each a line of single spaces, without the listings
// and tables in them; those shorter than 150 bytes are left out. A page that is no well-formed XML gives nothing.
std::string paragraphs_of(std::string_view xhtml);

// The text as corpora of words are kept: words, numbers and marks apart by spaces, words that occur less than three times as
// "<unk>". A model that reads it does so by imitating what stands far back, which prose asks much less for.
std::string words_apart(std::string_view text);

// The Debian handbook (package debian-handbook: 900 KB of prose about many things, each said once), or, where it is not
// installed, default_natural_text() (licences, which repeat one another); nullopt where both are missing.
std::optional<std::string> default_calibration_text();

}  // namespace polyspan
