// JSON has no enums: where the schema says an enum, its value stands.
export type Plain<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer E>
      ? Array<Plain<E>>
      : T extends object
        ? { [K in keyof T]: Plain<T[K]> }
        : T;

// A panel leaves out what it takes the default of.
export type Part<T> = T extends Array<infer E> ? Array<Part<E>> : T extends object ? { [K in keyof T]?: Part<T[K]> } : T;
