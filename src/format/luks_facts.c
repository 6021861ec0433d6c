/* SPDX-License-Identifier: MIT */
#include "format/luks.h"

static void facts_slot(const struct luks_slot *s, struct rhea_facts *facts)
{
    rhea_facts_object(facts, NULL, NULL);
    rhea_facts_bool(facts, "active", "active", s->active);
    if (s->active)
        rhea_facts_number(facts, "iters", "iters", s->iterations);
    rhea_facts_number(facts, "key offset", "key-offset", s->offset);
    if (s->active)
        rhea_facts_number(facts, "stripes", "stripes", LUKS_STRIPES);
    rhea_facts_end(facts);
}

void luks_facts(const struct luks *l, bool format, struct rhea_facts *facts)
{
    rhea_facts_string(facts, "ivgen alg", "ivgen-alg",
                      crypto_ivgen_name(l->kind.ivgen));
    rhea_facts_string(facts, "hash alg", "hash-alg", l->hash->name);
    rhea_facts_string(facts, "cipher alg", "cipher-alg", l->kind.alg->name);
    rhea_facts_string(facts, "uuid", "uuid", l->uuid);
    if (l->kind.ivgen == CRYPTO_ESSIV)
        rhea_facts_string(facts, "ivgen hash alg", "ivgen-hash-alg",
                          l->kind.ivgen_hash->name);
    if (format)
        rhea_facts_string(facts, "format", "format", "luks");
    rhea_facts_string(facts, "cipher mode", "cipher-mode",
                      crypto_mode_name(l->kind.mode));
    rhea_facts_list(facts, "slots", "slots");
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        facts_slot(&l->slots[i], facts);
    rhea_facts_end(facts);
    rhea_facts_number(facts, "payload offset", "payload-offset", l->payload);
    rhea_facts_number(facts, "master key iters", "master-key-iters",
                      l->iterations);
}
