-- One step of one coupon, atomically. The life cycle stands in server/coupons.py; names of keys are those of
-- nearcast/keys.py.
--
-- KEYS[1]  the coupon's hash: offer and the terms in it that count here; state (applied, redeemed or withdrawn),
--          applied_ms, expires_ms; held_by, held_store, held_until_ms, while_in_store of a reservation, which is over
--          once its time is; block, block_until_ms while it is out with offline tills; redemption and all redeemed_…
--          of a redemption, revenue_cents, discount_cents, broke (the term that an offline one didn't keep). For each
--          one that was called off void:<store><31><redemption> or, if at any store, void:<redemption>: what had been
--          redeemed, "" if nothing; how many there are in voids; and undone:<redemption> of what had been redeemed,
--          for who repeats it otherwise. blocks: those that it is or was in, each followed by <31>.
-- KEYS[2]  of tills: how many unknown codes whoever asks has asked for; of apply: the customer's index of coupons.
-- ARGV     step, now_ms, most unknown codes (0: any number) and in how many ms, then what the step needs.
--          Time is the caller's: replays and tests bring their own.
-- Returns  {verdict, the fields of SHOWN, more}, or {verdict, more} of a refusal.

local SHOWN = {
  'offer', 'state', 'applied_ms', 'redemption', 'redeemed_store', 'redeemed_ms', 'revenue_cents', 'discount_cents',
  'held_by', 'held_store', 'held_until_ms', 'while_in_store', 'block', 'block_until_ms', 'broke',
}
local TERMS = {'expires_ms', 'customer', 'promotion', 'store', 'this_store', 'exclusive', 'combines', 'least_cents'}
local HOUR_MS, DAY_MS, KEPT_OF_STORE, MOST_IN_PURCHASE, MOST_VOIDS = 3600000, 86400000, 10000, 50, 100

local key, step, now_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
local code = string.match(key, '{(.*)}$')

local function coupon_key(other) return 'nearcast:coupon:{' .. other .. '}' end
local function purchase_key(store, redemption) return 'nearcast:purchase:{' .. store .. '\31' .. redemption .. '}' end
local function redeemed_lately(customer) return 'nearcast:redeemed-lately:{' .. customer .. '}' end
local function store_coupons(store) return 'nearcast:store-coupons:{' .. store .. '}' end
local function block_key(block) return 'nearcast:block:{' .. block .. '}' end

local function fields(name, wanted)
  local found, values = {}, redis.call('HMGET', name, unpack(wanted))
  for i, field in ipairs(wanted) do found[field] = values[i] end
  return found
end

local function answer(verdict, more)
  return {verdict, redis.call('HMGET', key, unpack(SHOWN)), more}
end

local function keep(name, left_ms)
  if redis.call('PTTL', name) < left_ms then redis.call('PEXPIRE', name, string.format('%.0f', left_ms)) end
end

local state = redis.call('HGET', key, 'state')

if step == 'apply' then
  local index, lately = KEYS[2], KEYS[3]
  local offer, expires, left_ms, most = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
  if state == 'withdrawn' then return {'offer_recalled'} end
  if state then return answer('again') end
  if now_ms >= tonumber(expires) then return {'coupon_expired'} end
  redis.call('ZREMRANGEBYSCORE', lately, '-inf', now_ms - HOUR_MS)
  if most > 0 and redis.call('ZCARD', lately) >= most then
    local oldest = redis.call('ZRANGE', lately, 0, 0, 'WITHSCORES')[2]
    return {'too_many_applied', string.format('%.0f', oldest + HOUR_MS - now_ms)}
  end
  redis.call('ZADD', lately, ARGV[2], code)
  redis.call('PEXPIRE', lately, HOUR_MS)
  redis.call('HSET', key, 'offer', offer, 'state', 'applied', 'applied_ms', ARGV[2])
  for i, field in ipairs(TERMS) do
    if i == 1 or ARGV[7 + i] ~= '' then redis.call('HSET', key, field, i == 1 and expires or ARGV[7 + i]) end
  end
  -- Relative to the caller's time, not to the server's.
  redis.call('PEXPIRE', key, ARGV[7])
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now_ms)
  redis.call('ZADD', index, string.format('%.0f', now_ms + left_ms), code)
  keep(index, left_ms)
  if KEYS[4] then
    redis.call('ZADD', KEYS[4], ARGV[2], code)
    redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -KEPT_OF_STORE - 1)
    keep(KEYS[4], left_ms)
  end
  return answer('new')
end

if step == 'withdraw' then
  if not state then
    redis.call('HSET', key, 'state', 'withdrawn')
    redis.call('PEXPIRE', key, ARGV[5])
  end
  return {(state or 'withdrawn') == 'withdrawn' and 'withdrawn' or 'kept'}
end

-- All that follows is for tills. Who has asked for too many codes that don't exist hears nothing of any code.
local unknown, most_unknown, window_ms = KEYS[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if most_unknown > 0 then
  local asked = fields(unknown, {'count', 'until_ms'})
  if asked.until_ms and now_ms >= tonumber(asked.until_ms) then
    redis.call('DEL', unknown)
  elseif asked.count and tonumber(asked.count) >= most_unknown then
    return {'locked_out', string.format('%.0f', asked.until_ms - now_ms)}
  end
end

-- What an offline till has redeemed is in its block. Of other codes it must hear nothing, not even whether there are any.
local function in_block(block, store)
  return redis.call('HGET', block_key(block), 'store') == store
    and redis.call('SISMEMBER', block_key(block) .. ':codes', code) == 1
end
if step == 'redeem' and ARGV[14] ~= '' and not in_block(ARGV[9], ARGV[5]) then return {'not_in_block'} end

if not state or state == 'withdrawn' then
  if most_unknown > 0 and redis.call('HINCRBY', unknown, 'count', 1) == 1 then
    redis.call('HSET', unknown, 'until_ms', string.format('%.0f', now_ms + window_ms))
    redis.call('PEXPIRE', unknown, ARGV[4])
  end
  return {'unknown_coupon'}
end

if step == 'validate' then
  return answer('known')
end

local c = fields(key, SHOWN)
for field, value in pairs(fields(key, TERMS)) do c[field] = value end
-- Coupons from before there were terms have them in their offer only.
if not c.customer then c.customer = cjson.decode(c.offer).customer end

local function held(coupon) return coupon.held_by and now_ms < tonumber(coupon.held_until_ms) end

local function drop_hold()
  if c.held_by then
    redis.call('SREM', purchase_key(c.held_store, c.held_by), code)
    redis.call('HDEL', key, 'held_by', 'held_store', 'held_until_ms', 'held_ms', 'while_in_store')
  end
end

-- What keeps a till from having the coupon for a purchase, now or ever; nil: nothing.
local function over(store, redemption)
  local here, anywhere = 'void:' .. store .. '\31' .. redemption, 'void:' .. redemption
  local v = fields(key, {here, anywhere, 'voids'})
  if v[here] or v[anywhere] then return 'redemption_rolled_back' end
  if tonumber(v.voids or 0) >= MOST_VOIDS then return 'too_many_rolled_back' end
end
local function taken(store, redemption, block)
  local refused = over(store, redemption)
  if refused then return refused end
  if c.block and now_ms < tonumber(c.block_until_ms) and c.block ~= block then return 'in_block' end
  if held(c) and (c.held_by ~= redemption or c.held_store ~= store) then return 'reserved' end
end

-- Which promotion's coupon in the same purchase this one can't go with; nil: none. What is no longer in it goes.
local function in_the_way(purchase, store, redemption)
  for _, other in ipairs(redis.call('SMEMBERS', purchase)) do
    if other ~= code then
      local o = fields(coupon_key(other), {
        'state', 'redemption', 'redeemed_store', 'held_by', 'held_store', 'held_until_ms',
        'promotion', 'exclusive', 'combines',
      })
      local redeemed = o.state == 'redeemed' and o.redemption == redemption and o.redeemed_store == store
      local reserved = held(o) and o.held_by == redemption and o.held_store == store
      if not (redeemed or reserved) then
        redis.call('SREM', purchase, other)
      elseif c.exclusive or o.exclusive or (c.combines and c.combines == o.combines) then
        return o.promotion or ''
      end
    end
  end
end

local function join(purchase)
  redis.call('SADD', purchase, code)
  keep(purchase, redis.call('PTTL', key))
end

-- Kilometres along a great circle, by the haversine formula.
local function km(lat1, lng1, lat2, lng2)
  local a = math.sin(math.rad(lat2 - lat1) / 2) ^ 2
    + math.cos(math.rad(lat1)) * math.cos(math.rad(lat2)) * math.sin(math.rad(lng2 - lng1) / 2) ^ 2
  return 2 * 6371 * math.asin(math.min(1, math.sqrt(a)))
end

-- Whether nobody could have come here from where the customer's other coupons were redeemed of late.
local function too_fast(lately, store, lat, lng, most_km_per_h)
  local before = redis.call('ZREVRANGE', lately, 0, 9, 'WITHSCORES')
  for i = 1, #before, 2 do
    local there = fields(coupon_key(before[i]), {'redeemed_store', 'redeemed_lat', 'redeemed_lng'})
    if there.redeemed_lat and there.redeemed_store ~= store then
      local hours = math.abs(now_ms - before[i + 1]) / HOUR_MS
      if km(there.redeemed_lat, there.redeemed_lng, lat, lng) > most_km_per_h * hours then return true end
    end
  end
  return false
end

if step == 'reserve' then
  local store, redemption, hold_ms, while_in_store, block = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
  if state == 'redeemed' then
    if c.redemption == redemption and c.redeemed_store == store then return answer('again') end
    return {'already_redeemed'}
  end
  local refused = taken(store, redemption, block)
  if refused then return {refused} end
  if now_ms >= tonumber(c.expires_ms) then return {'coupon_expired'} end
  if c.this_store and c.store ~= store then return {'other_store'} end
  local purchase = purchase_key(store, redemption)
  local other = in_the_way(purchase, store, redemption)
  if other then return {'not_combinable', other} end
  if redis.call('SCARD', purchase) >= MOST_IN_PURCHASE then return {'too_many_in_purchase'} end
  local again = held(c)
  -- One that is over was another purchase's, perhaps.
  if not again then drop_hold() end
  join(purchase)
  local until_ms = math.min(now_ms + hold_ms, tonumber(c.expires_ms))
  redis.call('HSET', key, 'held_by', redemption, 'held_store', store)
  redis.call('HSET', key, 'held_until_ms', string.format('%.0f', until_ms), 'while_in_store', while_in_store)
  redis.call('HSET', key, 'held_ms', ARGV[2])
  return answer(again and 'again' or 'new')
end

if step == 'release' then
  local store, redemption = ARGV[5], ARGV[6]
  if state == 'redeemed' then return {'already_redeemed'} end
  if held(c) then
    if c.held_by ~= redemption or c.held_store ~= store then return {'reserved'} end
    drop_hold()
    return answer('new')
  end
  return answer('again')
end

if step == 'redeem' then
  local store, redemption, revenue, discount, block = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
  local lat, lng, most_redeemed, most_km_per_h = ARGV[10], ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13])
  -- Of a redemption that was made at a till without us: when. It has happened: who has the coupon now must do without,
  -- pace is not asked for, and a term that it breaks is noted.
  local offline_ms = ARGV[14] ~= '' and tonumber(ARGV[14])
  if state == 'redeemed' then
    if c.redemption == redemption and c.redeemed_store == store then return answer('again') end
    return {'already_redeemed'}
  end
  -- A redemption that was called off stays called off, even if its own request arrives late.
  local refused
  if offline_ms then refused = over(store, redemption) else refused = taken(store, redemption, block) end
  if refused then return {refused} end
  if offline_ms then
    local b = fields(block_key(block), {'taken_ms', 'until_ms'})
    -- Blocks from before this was noted have no taken_ms.
    local early = b.taken_ms and offline_ms < b.taken_ms - ARGV[15]
    if early or offline_ms >= b.until_ms + ARGV[15] then return {'not_in_time'} end
  end
  local at_ms = math.min(offline_ms or now_ms, now_ms)
  if at_ms >= tonumber(c.expires_ms) then return {'coupon_expired'} end
  if block ~= '' and not in_block(block, store) then return {'not_in_block'} end
  local purchase, lately = purchase_key(store, redemption), redeemed_lately(c.customer)
  redis.call('ZREMRANGEBYSCORE', lately, '-inf', now_ms - DAY_MS)
  local too_little = c.least_cents and revenue ~= '' and tonumber(revenue) < tonumber(c.least_cents)
  local crowded = offline_ms and redis.call('SCARD', purchase) >= MOST_IN_PURCHASE
  local other = not crowded and in_the_way(purchase, store, redemption)
  if not offline_ms then
    if c.this_store and c.store ~= store then return {'other_store'} end
    if too_little then return {'below_minimum', c.least_cents} end
    if other then return {'not_combinable', other} end
    if redis.call('SCARD', purchase) >= MOST_IN_PURCHASE then return {'too_many_in_purchase'} end
    if most_redeemed > 0 and redis.call('ZCOUNT', lately, now_ms - HOUR_MS + 1, '+inf') >= most_redeemed then
      -- The one that must be an hour old first.
      local old = redis.call('ZREVRANGE', lately, most_redeemed - 1, most_redeemed - 1, 'WITHSCORES')[2]
      return {'too_many_redeemed', string.format('%.0f', old + HOUR_MS - now_ms)}
    end
    if most_km_per_h > 0 and lat ~= '' and too_fast(lately, store, lat, lng, most_km_per_h) then
      return {'too_fast'}
    end
  end
  drop_hold()
  join(purchase)
  local at = string.format('%.0f', at_ms)
  redis.call('ZADD', lately, at, code)
  redis.call('PEXPIRE', lately, DAY_MS)
  redis.call(
    'HSET', key, 'state', 'redeemed', 'redemption', redemption, 'redeemed_store', store, 'redeemed_ms', at,
    'revenue_cents', revenue, 'discount_cents', discount
  )
  local broke = too_little and 'below_minimum' or other and 'not_combinable' or crowded and 'too_many_in_purchase'
  if broke then redis.call('HSET', key, 'broke', broke) end
  if lat ~= '' then redis.call('HSET', key, 'redeemed_lat', lat, 'redeemed_lng', lng) end
  if c.store then redis.call('ZREM', store_coupons(c.store), code) end
  return answer('new')
end

if step == 'rollback' then
  -- Without a store: of whichever store has this redemption.
  local store, redemption = ARGV[5], ARGV[6]
  local void = 'void:' .. (store ~= '' and store .. '\31' or '') .. redemption
  local before = redis.call('HGET', key, void)
  if before then return answer('again', before) end
  local was = ''
  if state == 'redeemed' and c.redemption == redemption and (store == '' or c.redeemed_store == store) then
    was = c.redeemed_store .. '\31' .. (c.revenue_cents or '') .. '\31' .. (c.discount_cents or '')
    redis.call('SREM', purchase_key(c.redeemed_store, redemption), code)
    redis.call('ZREM', redeemed_lately(c.customer), code)
    redis.call(
      'HDEL', key, 'redemption', 'redeemed_store', 'redeemed_ms', 'revenue_cents', 'discount_cents', 'redeemed_lat',
      'redeemed_lng', 'broke'
    )
    redis.call('HSET', key, 'undone:' .. redemption, was)
    redis.call('HSET', key, 'state', 'applied')
    if c.store then
      redis.call('ZADD', store_coupons(c.store), c.applied_ms, code)
      keep(store_coupons(c.store), redis.call('PTTL', key))
    end
  else
    local undone = redis.call('HGET', key, 'undone:' .. redemption)
    if undone and (store == '' or string.sub(undone, 1, #store + 1) == store .. '\31') then
      -- It was called off with the store, and now without, or the other way round.
      was = undone
    elseif state == 'redeemed' then
      return {'already_redeemed'}
    end
    if held(c) and c.held_by == redemption and (store == '' or c.held_store == store) then drop_hold() end
    -- With that many none is redeemed any more, so there is no need to note that this one mustn't be.
    if was == '' and tonumber(redis.call('HGET', key, 'voids') or 0) >= MOST_VOIDS then return answer('again', '') end
  end
  redis.call('HSET', key, void, was)
  redis.call('HINCRBY', key, 'voids', 1)
  return answer('new', was)
end

return redis.error_reply('unknown step')
