import { hash } from 'node:crypto';
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { z } from 'zod';
import { HyperMeshError } from '../../base/errors.ts';
import { laterTurn } from '../../base/turn.ts';
import type { AssetQuery, AssetRecord } from '../../capabilities/assets.ts';

/** Limits of one query. */
export const SEARCH_LIMITS = {
  textMax: 256,
  wordsMax: 12,
  wordLengthMax: 64,
  pageMax: 100,
  pageDefault: 20,
  cursorMax: 8_192,
} as const;

/** Fewer strict hits than this, and words close to those typed are tried too. */
const FORGIVE_BELOW = 3;
const CORRECTIONS_MAX = 4;

/** Bits of a text row that hold the sequence number of the package; the length of its name lies above. */
const SEQ_SPAN = 2 ** 40;

/**
 * The row of a package in the text index. Rows are found in rising order, so among equally good hits the package with the shorter name
 * comes first (more of it is what was typed), then the one that was published first. Neither ever changes: that makes cursors stable.
 */
export function textRow(seq: number, name: string): number {
  return name.length * SEQ_SPAN + seq;
}

/** The words of a text, folded: lower case, without accents, compatibility forms resolved. Everything else separates. */
export function wordsOf(text: string): string[] {
  const folded = text.toLowerCase().normalize('NFKD').replace(/\p{M}/gu, '');
  return Array.from(folded.matchAll(/[\p{L}\p{N}]+/gu), ([word]) =>
    word.length > SEARCH_LIMITS.wordLengthMax ? [...word].slice(0, SEARCH_LIMITS.wordLengthMax / 2).join('') : word,
  );
}

export interface SearchDocument {
  readonly name: string;
  readonly keywords: string;
  readonly description: string;
  readonly authors: string;
  readonly facets: string;
}

/** What the index holds of a package: the words of its head, and one opaque word for each property that a query can filter by. */
export function documentOf(head: Omit<AssetRecord, 'createdAtMs' | 'updatedAtMs'>): SearchDocument {
  const { manifest } = head;
  const words = (...texts: (string | undefined)[]) => texts.flatMap((text) => wordsOf(text ?? '')).join(' ');
  const facets = [
    ALL,
    ...(head.state === 'yanked' ? [YANKED] : []),
    facet('type', head.type),
    facet('owner', head.owner),
    facet('language', manifest.language),
    facet('license', manifest.license?.toLowerCase()),
    ...manifest.keywords.map((keyword) => facet('keyword', words(keyword))),
    facet('exact', words(head.name)),
    facet('exact', words(head.name.split('/')[1])),
  ];
  return {
    name: words(head.name),
    keywords: words(...manifest.keywords),
    description: words(manifest.description),
    authors: words(...manifest.authors),
    facets: [...new Set(facets)].join(' ').trim(),
  };
}

const ALL = 'all';
const YANKED = 'yanked';

/** A word that stands for one value of one property; nothing for no value. Values can be any text, words of the index cannot. */
function facet(property: string, value: string | undefined): string {
  return value ? `x${hash('sha256', `${property}:${value}`, 'hex').slice(0, 20)}` : '';
}

/** The keys under which a word is found when it is typed with one error. */
export function spellingKeys(word: string): string[] {
  if (word.length < 4 || word.length > 32) return [];
  const letters = [...word];
  return [...new Set([word, ...letters.map((_, index) => letters.toSpliced(index, 1).join(''))])];
}

/** Where a query goes on. `tier` and `row` name the last hit shown; nothing in it depends on what others publish. */
const cursorShape = z.tuple([
  z.literal(1),
  /** Of the query it belongs to. */
  z.string().length(16),
  z.int().min(0).max(7),
  z.int().nonnegative(),
  /** Total hits when the first page was shown. */
  z.int().nonnegative(),
  /** The words tried for each word typed, when errors were forgiven. */
  z
    .array(z.array(z.string().regex(/^[\p{L}\p{N}]{1,64}$/u)).max(CORRECTIONS_MAX + 1))
    .max(SEARCH_LIMITS.wordsMax)
    .nullable(),
]);
type Cursor = z.infer<typeof cursorShape>;

export interface SearchPage {
  readonly hits: readonly { readonly package: number; readonly score: number }[];
  readonly total: number;
  readonly cursor: string | null;
}

const queryShape = z.strictObject({
  text: z.string().max(SEARCH_LIMITS.textMax).default(''),
  type: z.string().max(64).optional(),
  language: z.string().max(32).optional(),
  keyword: z.string().max(64).optional(),
  owner: z.string().max(256).optional(),
  license: z.string().max(100).optional(),
  includeYanked: z.boolean().default(false),
  limit: z.int().min(1).max(SEARCH_LIMITS.pageMax).default(SEARCH_LIMITS.pageDefault),
  cursor: z.string().max(SEARCH_LIMITS.cursorMax).optional(),
});

/**
 * Ranked search in tiers: the name itself, then all words in the name, the same with the last word as a prefix, then keywords, description and
 * authors in turn, and, when there is next to nothing, words one typing error away. A page reads as many rows as it shows.
 *
 * Why not a score by frequency (bm25): it has to look at every match (30 to 120 ms for a common word among 100,000 packages, here 1 to 4), and
 * it moves with every package that is added, which no cursor survives.
 */
export class Search {
  readonly #db: DatabaseSync;
  readonly #newest: Index;
  readonly #texts: Index;
  readonly #packages: StatementSync;

  constructor(db: DatabaseSync) {
    this.#db = db;
    this.#packages = db.prepare('SELECT packages FROM totals');
    const count = (table: string) => db.prepare(`SELECT count(*) AS n FROM ${table} WHERE ${table} MATCH ?`);
    this.#newest = {
      count: count('newest'),
      page: db.prepare('SELECT rowid FROM newest WHERE newest MATCH ? AND rowid < ? ORDER BY rowid DESC LIMIT ?'),
      start: Number.MAX_SAFE_INTEGER,
    };
    this.#texts = {
      count: count('texts'),
      page: db.prepare('SELECT rowid FROM texts WHERE texts MATCH ? AND rowid > ? ORDER BY rowid LIMIT ?'),
      start: 0,
    };
  }

  /** Each question to the index may have a turn of the event loop to itself: words that most packages have take long. Errors: `usage`. */
  async page(query: AssetQuery): Promise<SearchPage> {
    const parsed = queryShape.safeParse(query);
    if (!parsed.success) {
      const [{ path, message }] = parsed.error.issues as [z.core.$ZodIssue];
      throw new HyperMeshError('usage', `The search has a wrong ${path.join('.') || 'form'}: ${message}.`);
    }
    const { limit, cursor: after, ...asked } = parsed.data;
    const words = wordsOf(asked.text);
    if (words.length > SEARCH_LIMITS.wordsMax) {
      throw new HyperMeshError('usage', `Expected at most ${SEARCH_LIMITS.wordsMax} words, but got ${words.length}.`);
    }
    const fingerprint = hash('sha256', JSON.stringify(asked), 'hex').slice(0, 16);
    const from = after === undefined ? null : decodeCursor(after, fingerprint);
    const where = filters(asked);
    // Text without a single letter or digit, or a filter that nothing can have, finds nothing: never everything.
    if (where === null || (words.length === 0 && asked.text.trim() !== '')) return { hits: [], total: 0, cursor: null };

    await laterTurn();
    const plan = words.length === 0 ? this.#browsing(where, from) : await this.#ranking(words, where, from);
    // On the first page the total is of this moment: when that many are found, further tiers have nothing.
    const wanted = from === null ? Math.min(limit + 1, plan.total) : limit + 1;
    const found: { tier: number; row: number }[] = [];
    for (let tier = from?.[2] ?? 0; tier < plan.tiers.length && found.length < wanted; tier++) {
      await laterTurn();
      const row = from !== null && tier === from[2] ? from[3] : plan.index.start;
      const rows = plan.index.page.all(plan.tiers[tier]!, row, wanted - found.length) as { rowid: number }[];
      for (const { rowid } of rows) found.push({ tier, row: rowid });
    }
    const shown = found.slice(0, limit);
    const last = shown.at(-1);
    return {
      hits: shown.map(({ tier, row }) => ({ package: row % SEQ_SPAN, score: plan.tiers.length - tier })),
      total: plan.total,
      cursor:
        found.length > limit && last
          ? encodeCursor([1, fingerprint, last.tier, last.row, plan.total, plan.corrections])
          : null,
    };
  }

  #browsing(where: Filters, from: Cursor | null): Plan {
    const expression = excluding([ALL, ...where.all].join(' AND '), where.none);
    const total =
      from?.[4] ?? (where.all.length === 0 ? this.#everything(where.none) : count(this.#newest, expression));
    return { index: this.#newest, tiers: [expression], total, corrections: null };
  }

  /** All packages but the few that are left out: counting those takes no time, counting all would. */
  #everything(none: readonly string[]): number {
    const { packages } = this.#packages.get() as { packages: number };
    return none.length === 0 ? packages : packages - count(this.#newest, none.map(group).join(' OR '));
  }

  async #ranking(words: readonly string[], where: Filters, from: Cursor | null): Promise<Plan> {
    const columns = (upTo: number) => `{${COLUMNS.slice(0, upTo).join(' ')}}`;
    // To ask for a word twice takes twice as long.
    const [before, last] = [[...new Set(words.slice(0, -1))], words.at(-1)!];
    const all = (prefix: string) => [...before.map((word) => `"${word}"`), `"${last}"${prefix}`].join(' AND ');
    // Each is contained in the next; a tier is what the one before did not have.
    const nested = [
      `facets : ${facet('exact', words.join(' '))}`,
      `name : (${all('')})`,
      ...COLUMNS.map((_, index) => `${columns(index + 1)} : (${all('*')})`),
    ];
    const restrict = (expression: string) =>
      [expression, ...where.all.map((one) => `facets : ${one}`)].map(group).join(' AND ');
    const none = where.none.map((one) => `facets : ${one}`);
    const strict = from === null ? count(this.#texts, excluding(restrict(nested.at(-1)!), none)) : 0;
    const corrections = from ? from[5] : strict < FORGIVE_BELOW ? correct(this.#db, words) : null;
    await laterTurn();
    if (corrections !== null) {
      const near = corrections.map((options, i) =>
        group(options.map((one, at) => `"${one}"${at === 0 && i === words.length - 1 ? '*' : ''}`).join(' OR ')),
      );
      nested.push(`${columns(COLUMNS.length)} : (${near.join(' AND ')})`);
    }
    const tiers = nested.map((expression, index) =>
      excluding(restrict(expression), index === 0 ? none : [nested[index - 1]!, ...none]),
    );
    const total = from?.[4] ?? strict + (corrections === null ? 0 : count(this.#texts, tiers.at(-1)!));
    return { index: this.#texts, tiers, total, corrections };
  }
}

const COLUMNS = ['name', 'keywords', 'description', 'authors'] as const;

interface Index {
  readonly count: StatementSync;
  /** (expression, row of the last hit, limit) -> rows */
  readonly page: StatementSync;
  /** The row before all others in the direction of reading. */
  readonly start: number;
}

interface Plan {
  readonly index: Index;
  /** Match expressions, best first; no two of them match the same package. */
  readonly tiers: readonly string[];
  readonly total: number;
  readonly corrections: Cursor[5];
}

function count(index: Index, expression: string): number {
  return (index.count.get(expression) as { n: number }).n;
}

interface Filters {
  readonly all: readonly string[];
  readonly none: readonly string[];
}

/** Null when a filter is given that no package can meet. */
function filters(asked: Omit<z.infer<typeof queryShape>, 'limit' | 'cursor'>): Filters | null {
  const { type, language, owner } = asked;
  const given = {
    type,
    language,
    owner,
    license: asked.license?.toLowerCase(),
    keyword: asked.keyword === undefined ? undefined : wordsOf(asked.keyword).join(' '),
  };
  const all: string[] = [];
  for (const [property, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (value === '') return null;
    all.push(facet(property, value));
  }
  return { all, none: asked.includeYanked ? [] : [YANKED] };
}

/** For each word typed, itself and the nearest words of the index; null when there are none. */
function correct(db: DatabaseSync, words: readonly string[]): string[][] | null {
  const corrections = words.map((word) => {
    const keys = spellingKeys(word);
    if (keys.length === 0) return [word];
    const rows = db
      .prepare(`SELECT DISTINCT word FROM spellings WHERE key IN (${keys.map(() => '?').join(', ')}) LIMIT 200`)
      .all(...keys) as { word: string }[];
    // Long words may be off by two: one letter too many here, another one there.
    const distanceMax = word.length >= 8 ? 2 : 1;
    const near = rows
      .map((row) => ({ word: row.word, distance: distance(word, row.word) }))
      .filter((one) => one.distance > 0 && one.distance <= distanceMax)
      .sort((a, b) => a.distance - b.distance || (a.word < b.word ? -1 : 1))
      .slice(0, CORRECTIONS_MAX);
    return [word, ...near.map((one) => one.word)];
  });
  return corrections.some((options) => options.length > 1) ? corrections : null;
}

/** Letters added, left out, replaced, or swapped with their neighbour (optimal string alignment). */
function distance(a: string, b: string): number {
  const [from, to] = [[...a], [...b]];
  let beforeLast: number[] = [];
  let last = Array.from({ length: to.length + 1 }, (_, j) => j);
  for (let i = 1; i <= from.length; i++) {
    const row = [i];
    for (let j = 1; j <= to.length; j++) {
      const same = from[i - 1] === to[j - 1];
      row[j] = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1])
        row[j] = Math.min(row[j]!, beforeLast[j - 2]! + 1);
    }
    [beforeLast, last] = [last, row];
  }
  return last[to.length]!;
}

function group(expression: string): string {
  return `(${expression})`;
}

function excluding(expression: string, none: readonly string[]): string {
  return none.length === 0 ? expression : `${group(expression)} NOT ${group(none.map(group).join(' OR '))}`;
}

function encodeCursor(cursor: Cursor): string {
  return Buffer.from(JSON.stringify(cursor)).toString('base64url');
}

function decodeCursor(text: string, fingerprint: string): Cursor {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(text, 'base64url').toString());
  } catch {
    value = null;
  }
  const cursor = cursorShape.safeParse(value);
  if (cursor.success && cursor.data[1] === fingerprint) return cursor.data;
  throw new HyperMeshError(
    'usage',
    `Expected the cursor of an earlier page of this search, but got "${text.slice(0, 40)}".`,
    {
      hint: 'Repeat the search with the same words and filters and without a cursor.',
    },
  );
}
