// Question answering over documents of invented facts: one hop ("In which town was X born?") and two ("Who founded the town where X
// was born?"). They stand for RULER's qa_1 (SQuAD) and qa_2 (HotpotQA), whose data does not come with this program.
#include <algorithm>
#include <memory>

#include "eval/ruler_draft.h"

namespace polyspan::ruler {
namespace {

constexpr std::string_view kFirstNames[] = {"Ada",   "Boris", "Clara", "David", "Emma",  "Felix", "Grace",
                                            "Henry", "Irene", "Jonas", "Karen", "Louis", "Maria", "Nils",
                                            "Olga",  "Peter", "Rosa",  "Simon", "Tessa", "Victor"};
constexpr int64_t kMostPeople = 12'000;  // each takes up to three invented names, of some 150,000

// What a document says of a person; "{who}" and "{what}" are invented names.
struct FactForm {
  std::string_view sentence, question, answer_start;
};
constexpr FactForm kFacts[] = {
    {"{who} was born in the town of {what}.", "In which town was {who} born?", "{who} was born in the town of"},
    {"{who} worked for the company {what} for many years.", "For which company did {who} work?",
     "{who} worked for the company"},
    {"{who} wrote a book about the painter {what}.", "About which painter did {who} write a book?",
     "{who} wrote a book about the painter"},
    {"{who} climbed Mount {what} in winter.", "Which mountain did {who} climb?", "{who} climbed Mount"},
    {"{who} sailed to the island of {what} in a small boat.", "To which island did {who} sail?",
     "{who} sailed to the island of"},
    {"{who} learned music from the singer {what}.", "From which singer did {who} learn music?",
     "{who} learned music from the singer"},
};
constexpr FactForm kBirth = kFacts[0];
constexpr FactForm kFounder = {"The town of {who} was founded by {what}.", "", ""};

std::string fill(std::string_view form, std::string_view who, std::string_view what) {
  std::string out;
  while (!form.empty()) {
    const bool is_who = form.starts_with("{who}");
    if (is_who || form.starts_with("{what}")) {
      out += is_who ? who : what;
      form.remove_prefix(is_who ? 5 : 6);
    } else {
      out += form.front();
      form.remove_prefix(1);
    }
  }
  return out;
}

// One unit of a prompt: a person's document and, with two hops, that of the town of birth.
struct Person {
  FactForm fact;
  std::string name, what, founder;
  std::string possession, sight;  // "a calm river"
  int64_t key = 0, town_key = 0;  // the documents stand in the order of these
};

std::string about_person(const Person& p) {
  return fill(p.fact.sentence, p.name, p.what) + " At home there was always " + p.possession + ".";
}
std::string about_town(const Person& p) {
  return fill(kFounder.sentence, p.what, p.founder) + " Its market place has " + p.sight + ".";
}

// The first person is the one asked about.
std::vector<Person> make_people(RandomSource& random, int64_t n, bool two_hops) {
  DistinctValues values(random);
  const auto person = [&] {
    return std::string(random.pick(std::span<const std::string_view>(kFirstNames))) + " " + values.invented_name();
  };
  const auto thing = [&] {
    return "one " + std::string(random.pick(adjectives())) + " " + std::string(random.pick(nouns()));
  };
  std::vector<Person> people(static_cast<size_t>(n));
  for (Person& p : people) {
    p.fact = two_hops ? kBirth : random.pick(std::span<const FactForm>(kFacts));
    p.name = person();
    p.what = values.invented_name();
    if (two_hops) p.founder = person();
    p.possession = thing();
    p.sight = thing();
    p.key = random.below(INT64_MAX);
    p.town_key = random.below(INT64_MAX);
  }
  return people;
}

Draft question_draft(const Material& material, bool two_hops) {
  const int64_t document_tokens = two_hops ? 50 : 25;  // at least, of what a person adds
  Draft draft;
  draft.rule = ScoreRule::kContainsAny;
  draft.most = std::clamp<int64_t>(material.budget / document_tokens, 1, kMostPeople);
  const auto people = std::make_shared<const std::vector<Person>>(make_people(material.random, draft.most, two_hops));
  const Person& asked = people->front();
  std::string question;
  if (two_hops) {
    question = "Who founded the town where " + asked.name + " was born?";
    draft.answer_start = "The town where " + asked.name + " was born was founded by";
    draft.wanted = {asked.founder};
  } else {
    question = fill(asked.fact.question, asked.name, "");
    draft.answer_start = fill(asked.fact.answer_start, asked.name, "");
    draft.wanted = {asked.what};
  }
  draft.text = [people, two_hops, question](int64_t n) {
    std::vector<std::pair<int64_t, std::string>> documents;
    for (int64_t i = 0; i < n; ++i) {
      const Person& p = (*people)[static_cast<size_t>(i)];
      documents.emplace_back(p.key, about_person(p));
      if (two_hops) documents.emplace_back(p.town_key, about_town(p));
    }
    std::sort(documents.begin(), documents.end());
    std::string out = "Answer the question at the end from these documents. Give the answer only.\n\n";
    for (size_t i = 0; i < documents.size(); ++i)
      out += "Document " + std::to_string(i + 1) + ":\n" + documents[i].second + "\n\n";
    return out + question;
  };
  return draft;
}

}  // namespace

Draft one_hop_draft(const Material& material) { return question_draft(material, false); }
Draft two_hop_draft(const Material& material) { return question_draft(material, true); }

}  // namespace polyspan::ruler
