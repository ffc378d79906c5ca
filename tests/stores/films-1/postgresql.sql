--
-- PostgreSQL database dump
--

\restrict A0siuWqnIZVDFjPWso6BXIUaFlfBX15JnoARN21z75QQ4hebglTb14Mlguy5hAi

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: dbos; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA dbos;


--
-- Name: enqueue_workflow(text, text, json[], json, text, text, text, text, bigint, bigint, text, integer, text, text, text, bigint, text); Type: FUNCTION; Schema: dbos; Owner: -
--

CREATE FUNCTION dbos.enqueue_workflow(workflow_name text, queue_name text, positional_args json[] DEFAULT ARRAY[]::json[], named_args json DEFAULT '{}'::json, class_name text DEFAULT NULL::text, config_name text DEFAULT NULL::text, workflow_id text DEFAULT NULL::text, app_version text DEFAULT NULL::text, timeout_ms bigint DEFAULT NULL::bigint, deadline_epoch_ms bigint DEFAULT NULL::bigint, deduplication_id text DEFAULT NULL::text, priority integer DEFAULT NULL::integer, queue_partition_key text DEFAULT NULL::text, authenticated_user text DEFAULT NULL::text, authenticated_roles text DEFAULT NULL::text, delay_until_epoch_ms bigint DEFAULT NULL::bigint, application_name text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_workflow_id TEXT;
    v_serialized_inputs TEXT;
    v_owner_xid TEXT;
    v_now BIGINT;
    v_recovery_attempts INT4 := 0;
    v_priority INT4;
    v_status TEXT;
BEGIN

    -- Validate required parameters
    IF workflow_name IS NULL OR workflow_name = '' THEN
        RAISE EXCEPTION 'Workflow name cannot be null or empty';
    END IF;
    IF queue_name IS NULL OR queue_name = '' THEN
        RAISE EXCEPTION 'Queue name cannot be null or empty';
    END IF;
    IF named_args IS NOT NULL AND jsonb_typeof(named_args::jsonb) != 'object' THEN
        RAISE EXCEPTION 'Named args must be a JSON object';
    END IF;
    IF workflow_id IS NOT NULL AND workflow_id = '' THEN
        RAISE EXCEPTION 'Workflow ID cannot be an empty string if provided.';
    END IF;
    IF delay_until_epoch_ms IS NOT NULL AND delay_until_epoch_ms < 0 THEN
        RAISE EXCEPTION 'delay_until_epoch_ms must be >= 0';
    END IF;

    v_workflow_id := COALESCE(workflow_id, gen_random_uuid()::TEXT);
    v_owner_xid := gen_random_uuid()::TEXT;
    v_priority := COALESCE(priority, 0);
    v_serialized_inputs := json_build_object(
        'positionalArgs', positional_args,
        'namedArgs', named_args
    )::TEXT;
    v_now := EXTRACT(epoch FROM now()) * 1000;
    v_status := CASE WHEN delay_until_epoch_ms IS NULL THEN 'ENQUEUED' ELSE 'DELAYED' END;

    INSERT INTO "dbos".workflow_status (
        workflow_uuid, status,
        name, class_name, config_name,
        queue_name, deduplication_id, priority, queue_partition_key,
        application_version,
        created_at, updated_at, recovery_attempts,
        workflow_timeout_ms, workflow_deadline_epoch_ms,
        parent_workflow_id, owner_xid, serialization,
        authenticated_user, authenticated_roles,
        delay_until_epoch_ms, application_name
    ) VALUES (
        v_workflow_id, v_status,
        workflow_name, class_name, config_name,
        queue_name, deduplication_id, v_priority, queue_partition_key,
        app_version,
        v_now, v_now, v_recovery_attempts,
        timeout_ms, deadline_epoch_ms,
        NULL, v_owner_xid, 'portable_json',
        authenticated_user, authenticated_roles,
        delay_until_epoch_ms, application_name
    )
    ON CONFLICT (workflow_uuid)
    DO UPDATE SET
        updated_at = EXCLUDED.updated_at;

    INSERT INTO "dbos".workflow_input (
        workflow_uuid, inputs, retention_timestamp
    ) VALUES (
        v_workflow_id, v_serialized_inputs, v_now
    )
    ON CONFLICT (workflow_uuid) DO NOTHING;

    RETURN v_workflow_id;

EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION 'DBOS queue duplicated'
            USING DETAIL = format('Workflow %s with queue %s and deduplication ID %s already exists', v_workflow_id, queue_name, deduplication_id),
                ERRCODE = 'unique_violation';
END;
$$;


--
-- Name: notifications_function(); Type: FUNCTION; Schema: dbos; Owner: -
--

CREATE FUNCTION dbos.notifications_function() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    payload text := NEW.destination_uuid || '::' || NEW.topic;
BEGIN
    PERFORM pg_notify('dbos_notifications_channel', payload);
    RETURN NEW;
END;
$$;


--
-- Name: send_message(text, json, text, text); Type: FUNCTION; Schema: dbos; Owner: -
--

CREATE FUNCTION dbos.send_message(destination_id text, message json, topic text DEFAULT NULL::text, message_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_topic TEXT := COALESCE(topic, '__null__topic__');
    v_message_id TEXT := COALESCE(message_id, gen_random_uuid()::TEXT);
BEGIN
    INSERT INTO "dbos".notifications (
        destination_uuid, topic, message, message_uuid, serialization
    ) VALUES (
        destination_id, v_topic, message, v_message_id, 'portable_json'
    )
    ON CONFLICT (message_uuid) DO NOTHING;
EXCEPTION
    WHEN foreign_key_violation THEN
        RAISE EXCEPTION 'DBOS non-existent workflow'
            USING DETAIL = format('Destination workflow %s does not exist', destination_id),
                ERRCODE = 'foreign_key_violation';
END;
$$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: application_versions; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.application_versions (
    version_id text NOT NULL,
    version_name text NOT NULL,
    version_timestamp bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    created_at bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    application_name text
);


--
-- Name: dbos_migrations; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.dbos_migrations (
    version bigint NOT NULL
);


--
-- Name: event_dispatch_kv; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.event_dispatch_kv (
    service_name text NOT NULL,
    workflow_fn_name text NOT NULL,
    key text NOT NULL,
    value text,
    update_seq numeric(38,0),
    update_time numeric(38,15)
);


--
-- Name: notifications; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.notifications (
    message_uuid text DEFAULT gen_random_uuid() NOT NULL,
    destination_uuid text NOT NULL,
    topic text,
    message text NOT NULL,
    created_at_epoch_ms bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    serialization text,
    consumed boolean DEFAULT false NOT NULL,
    consumed_by_function_id integer
);


--
-- Name: operation_outputs; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.operation_outputs (
    workflow_uuid text NOT NULL,
    function_id integer NOT NULL,
    function_name text DEFAULT ''::text NOT NULL,
    output text,
    error text,
    child_workflow_id text,
    started_at_epoch_ms bigint,
    completed_at_epoch_ms bigint,
    serialization text,
    application_name text,
    retention_timestamp bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL
);


--
-- Name: queues; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.queues (
    queue_id text DEFAULT (gen_random_uuid())::text NOT NULL,
    name text NOT NULL,
    concurrency integer,
    worker_concurrency integer,
    rate_limit_max integer,
    rate_limit_period_sec double precision,
    priority_enabled boolean DEFAULT false NOT NULL,
    partition_queue boolean DEFAULT false NOT NULL,
    polling_interval_sec double precision DEFAULT 1.0 NOT NULL,
    created_at bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    updated_at bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    application_name text,
    partition_concurrency integer,
    partition_worker_concurrency integer,
    partition_rate_limit_max integer,
    partition_rate_limit_period_sec double precision
);


--
-- Name: streams; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.streams (
    workflow_uuid text NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    "offset" integer NOT NULL,
    function_id integer DEFAULT 0 NOT NULL,
    serialization text
);


--
-- Name: workflow_events; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.workflow_events (
    workflow_uuid text NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    serialization text
);


--
-- Name: workflow_events_history; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.workflow_events_history (
    workflow_uuid text NOT NULL,
    function_id integer NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    serialization text
);


--
-- Name: workflow_input; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.workflow_input (
    workflow_uuid text NOT NULL,
    inputs text,
    retention_timestamp bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL
);


--
-- Name: workflow_output; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.workflow_output (
    workflow_uuid text NOT NULL,
    output text,
    error text,
    retention_timestamp bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL
);


--
-- Name: workflow_schedules; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.workflow_schedules (
    schedule_id text NOT NULL,
    schedule_name text NOT NULL,
    workflow_name text NOT NULL,
    workflow_class_name text,
    schedule text NOT NULL,
    status text DEFAULT 'ACTIVE'::text NOT NULL,
    context text NOT NULL,
    last_fired_at text,
    automatic_backfill boolean DEFAULT false NOT NULL,
    cron_timezone text,
    queue_name text,
    application_name text
);


--
-- Name: workflow_status; Type: TABLE; Schema: dbos; Owner: -
--

CREATE TABLE dbos.workflow_status (
    workflow_uuid text NOT NULL,
    status text,
    name text,
    authenticated_user text,
    assumed_role text,
    authenticated_roles text,
    request text,
    output text,
    error text,
    executor_id text,
    created_at bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    updated_at bigint DEFAULT ((EXTRACT(epoch FROM now()) * 1000.0))::bigint NOT NULL,
    application_version text,
    application_id text,
    class_name character varying(255) DEFAULT NULL::character varying,
    config_name character varying(255) DEFAULT NULL::character varying,
    recovery_attempts bigint DEFAULT 0,
    queue_name text,
    workflow_timeout_ms bigint,
    workflow_deadline_epoch_ms bigint,
    inputs text,
    started_at_epoch_ms bigint,
    deduplication_id text,
    priority integer DEFAULT 0 NOT NULL,
    queue_partition_key text,
    forked_from text,
    owner_xid text,
    parent_workflow_id text,
    serialization text,
    delay_until_epoch_ms bigint,
    was_forked_from boolean DEFAULT false NOT NULL,
    rate_limited boolean DEFAULT false NOT NULL,
    completed_at bigint,
    attributes jsonb,
    schedule_name text,
    debounce_deadline_epoch_ms bigint,
    is_debounced boolean DEFAULT false NOT NULL,
    application_name text,
    creator_xid text
);


--
-- Name: events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.events (
    film_id character varying(32) NOT NULL,
    sequence_number integer NOT NULL,
    event bytea NOT NULL
);


--
-- Name: films; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.films (
    film_id character varying(32) NOT NULL,
    owner character varying(64) NOT NULL,
    request_id character varying(128) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    state smallint NOT NULL,
    waiting_reason text NOT NULL,
    create_time_us bigint NOT NULL,
    last_sequence_number integer NOT NULL,
    film bytea NOT NULL
);


--
-- Name: scenes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.scenes (
    film_id character varying(32) NOT NULL,
    scene_index smallint NOT NULL,
    clip_sha256 character varying(64) NOT NULL,
    done_ratio double precision NOT NULL,
    start_time_us bigint NOT NULL,
    end_time_us bigint NOT NULL,
    scene bytea NOT NULL
);


--
-- Data for Name: application_versions; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.application_versions VALUES ('5bbe7301-1ce8-46e7-ac0a-687ecec046ca', 'films-1', 1795527595442, 1795527595442, 'halfreel-gateway');


--
-- Data for Name: dbos_migrations; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.dbos_migrations VALUES (125);


--
-- Data for Name: event_dispatch_kv; Type: TABLE DATA; Schema: dbos; Owner: -
--



--
-- Data for Name: notifications; Type: TABLE DATA; Schema: dbos; Owner: -
--



--
-- Data for Name: operation_outputs; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 1, 'write_script', '{"scene_count": 2, "accepted_s": 1795527595, "plan": {"width_px": 64, "height_px": 64, "fps": 7}}', NULL, NULL, 1795527595578, 1795527595617, 'halfreel_json', 'halfreel-gateway', 1795527595619);
INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 2, 'scene', NULL, NULL, '55b1ebc461a32c592f2cb6f71e7b1326-0-0', 1795527595622, 1795527595626, NULL, 'halfreel-gateway', 1795527595625);
INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 3, 'scene', NULL, NULL, '55b1ebc461a32c592f2cb6f71e7b1326-1-0', 1795527595629, 1795527595643, NULL, 'halfreel-gateway', 1795527595640);
INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-0-0', 1, 'render_scene', 'null', NULL, NULL, 1795527596650, 1795527596725, 'halfreel_json', 'halfreel-gateway', 1795527596728);
INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-1-0', 1, 'render_scene', 'null', NULL, NULL, 1795527596783, 1795527596853, 'halfreel_json', 'halfreel-gateway', 1795527596855);
INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 4, 'wait_rendered', 'true', NULL, NULL, 1795527595652, 1795527596864, 'halfreel_json', 'halfreel-gateway', 1795527596872);
INSERT INTO dbos.operation_outputs VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 5, 'join', '[]', NULL, NULL, 1795527596874, 1795527596908, 'halfreel_json', 'halfreel-gateway', 1795527596909);
INSERT INTO dbos.operation_outputs VALUES ('b3c6946d0717ae4ec269a722c10c0655', 1, 'write_script', '{"scene_count": 2, "accepted_s": 1795527596, "plan": {"width_px": 64, "height_px": 64, "fps": 7}}', NULL, NULL, 1795527596944, 1795527596969, 'halfreel_json', 'halfreel-gateway', 1795527596970);
INSERT INTO dbos.operation_outputs VALUES ('b3c6946d0717ae4ec269a722c10c0655', 2, 'scene', NULL, NULL, 'b3c6946d0717ae4ec269a722c10c0655-0-0', 1795527596975, 1795527596978, NULL, 'halfreel-gateway', 1795527596977);
INSERT INTO dbos.operation_outputs VALUES ('b3c6946d0717ae4ec269a722c10c0655', 3, 'scene', NULL, NULL, 'b3c6946d0717ae4ec269a722c10c0655-1-0', 1795527596994, 1795527597002, NULL, 'halfreel-gateway', 1795527597001);
INSERT INTO dbos.operation_outputs VALUES ('b3c6946d0717ae4ec269a722c10c0655-0-0', 1, 'render_scene', 'null', NULL, NULL, 1795527597026, 1795527597082, 'halfreel_json', 'halfreel-gateway', 1795527597088);


--
-- Data for Name: queues; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.queues VALUES ('525f1748-1cb5-4b1d-bf6f-9d5a334728e1', 'scenes', NULL, 1, NULL, NULL, true, false, 0.1, 1795527595512, 1795527595510, 'halfreel-gateway', NULL, NULL, NULL, NULL);


--
-- Data for Name: streams; Type: TABLE DATA; Schema: dbos; Owner: -
--



--
-- Data for Name: workflow_events; Type: TABLE DATA; Schema: dbos; Owner: -
--



--
-- Data for Name: workflow_events_history; Type: TABLE DATA; Schema: dbos; Owner: -
--



--
-- Data for Name: workflow_input; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.workflow_input VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', '{"args": ["55b1ebc461a32c592f2cb6f71e7b1326"], "kwargs": {}}', 1795527595574);
INSERT INTO dbos.workflow_input VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-0-0', '{"args": ["55b1ebc461a32c592f2cb6f71e7b1326", 0, {"width_px": 64, "height_px": 64, "fps": 7}], "kwargs": {}}', 1795527595625);
INSERT INTO dbos.workflow_input VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-1-0', '{"args": ["55b1ebc461a32c592f2cb6f71e7b1326", 1, {"width_px": 64, "height_px": 64, "fps": 7}], "kwargs": {}}', 1795527595640);
INSERT INTO dbos.workflow_input VALUES ('b3c6946d0717ae4ec269a722c10c0655', '{"args": ["b3c6946d0717ae4ec269a722c10c0655"], "kwargs": {}}', 1795527596935);
INSERT INTO dbos.workflow_input VALUES ('b3c6946d0717ae4ec269a722c10c0655-0-0', '{"args": ["b3c6946d0717ae4ec269a722c10c0655", 0, {"width_px": 64, "height_px": 64, "fps": 7}], "kwargs": {}}', 1795527596977);
INSERT INTO dbos.workflow_input VALUES ('b3c6946d0717ae4ec269a722c10c0655-1-0', '{"args": ["b3c6946d0717ae4ec269a722c10c0655", 1, {"width_px": 64, "height_px": 64, "fps": 7}], "kwargs": {}}', 1795527597001);
INSERT INTO dbos.workflow_input VALUES ('e823a062077d9d193696f05810da5122', '{"args": ["e823a062077d9d193696f05810da5122"], "kwargs": {}}', 1795527597192);


--
-- Data for Name: workflow_output; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.workflow_output VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-0-0', 'null', NULL, 1795527596743);
INSERT INTO dbos.workflow_output VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-1-0', 'null', NULL, 1795527596858);
INSERT INTO dbos.workflow_output VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 'null', NULL, 1795527596911);
INSERT INTO dbos.workflow_output VALUES ('b3c6946d0717ae4ec269a722c10c0655-0-0', 'null', NULL, 1795527597105);


--
-- Data for Name: workflow_schedules; Type: TABLE DATA; Schema: dbos; Owner: -
--



--
-- Data for Name: workflow_status; Type: TABLE DATA; Schema: dbos; Owner: -
--

INSERT INTO dbos.workflow_status VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-0-0', 'SUCCESS', 'scene', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527595625, 1795527596743, 'films-1', '', NULL, NULL, 1, 'scenes', NULL, NULL, NULL, 1795527596632, NULL, 28301995, NULL, NULL, NULL, '55b1ebc461a32c592f2cb6f71e7b1326', 'halfreel_json', NULL, false, false, 1795527596743, 'null', NULL, NULL, false, 'halfreel-gateway', '6f418ef2-3e33-4cbc-b385-bdb5892ec92a');
INSERT INTO dbos.workflow_status VALUES ('55b1ebc461a32c592f2cb6f71e7b1326-1-0', 'SUCCESS', 'scene', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527595640, 1795527596858, 'films-1', '', NULL, NULL, 1, 'scenes', NULL, NULL, NULL, 1795527596760, NULL, 28302055, NULL, NULL, NULL, '55b1ebc461a32c592f2cb6f71e7b1326', 'halfreel_json', NULL, false, false, 1795527596858, 'null', NULL, NULL, false, 'halfreel-gateway', 'd84b9406-2bf5-487c-8648-6498046c82a5');
INSERT INTO dbos.workflow_status VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 'SUCCESS', 'film', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527595574, 1795527596911, 'films-1', '', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, 'halfreel_json', NULL, false, false, 1795527596911, 'null', NULL, NULL, false, 'halfreel-gateway', '588f6e3a-72f1-4f55-98b1-0838aa9cb481');
INSERT INTO dbos.workflow_status VALUES ('b3c6946d0717ae4ec269a722c10c0655', 'PENDING', 'film', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527596935, 1795527596935, 'films-1', '', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, '68a74216-1862-4e42-8eee-e41f113168fc', NULL, 'halfreel_json', NULL, false, false, NULL, 'null', NULL, NULL, false, 'halfreel-gateway', '68a74216-1862-4e42-8eee-e41f113168fc');
INSERT INTO dbos.workflow_status VALUES ('b3c6946d0717ae4ec269a722c10c0655-0-0', 'SUCCESS', 'scene', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527596977, 1795527597105, 'films-1', '', NULL, NULL, 1, 'scenes', NULL, NULL, NULL, 1795527597004, NULL, 28301996, NULL, NULL, NULL, 'b3c6946d0717ae4ec269a722c10c0655', 'halfreel_json', NULL, false, false, 1795527597105, 'null', NULL, NULL, false, 'halfreel-gateway', 'e87d3348-e16b-40a2-9330-dd28b2cdf726');
INSERT INTO dbos.workflow_status VALUES ('b3c6946d0717ae4ec269a722c10c0655-1-0', 'PENDING', 'scene', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527597001, 1795527597137, 'films-1', '', NULL, NULL, 1, 'scenes', NULL, NULL, NULL, 1795527597137, NULL, 28302056, NULL, NULL, '3ba2306a-8d8c-4948-9ab2-61e30592daa3', 'b3c6946d0717ae4ec269a722c10c0655', 'halfreel_json', NULL, false, false, NULL, 'null', NULL, NULL, false, 'halfreel-gateway', 'd7f37cad-c2b0-4e84-b3da-7bda2ffbd672');
INSERT INTO dbos.workflow_status VALUES ('e823a062077d9d193696f05810da5122', 'PENDING', 'film', NULL, NULL, NULL, NULL, NULL, NULL, 'gateway', 1795527597192, 1795527597192, 'films-1', '', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, 'b933db47-17bf-4ddd-8a3e-43e9ef281921', NULL, 'halfreel_json', NULL, false, false, NULL, 'null', NULL, NULL, false, 'halfreel-gateway', 'b933db47-17bf-4ddd-8a3e-43e9ef281921');


--
-- Data for Name: events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 1, '\x0801120c08aba796d8061080b4838f0222020801');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 2, '\x0802120c08aba796d80610b8e7af990222020802');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 3, '\x0803120c08aba796d80610e896fda202221a08031211412066696c6d206f6620646f75626c65731dcdcccc3d');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 4, '\x0804120c08aba796d80610e896fda2022a3210011a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba10');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 5, '\x0805120c08aba796d80610e896fda2022a34080110011a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 6, '\x0806120c08aca796d80610d88ebecb022a3410021a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba104001');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 7, '\x0807120c08aca796d8061088ccaad7022acd0110031a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba1040014a5108d93012403034646634386361626132613566623266363666666536633465383664646364303439643661316330656632363735386661663862626437303830666264346318402040280730073a02080152110a086b65796672616d65120510c096b10252100a0764656e6f697365120510c096b1025a0f0a0764656e6f6973651204080510075a0e0a066465636f6465120408051007');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 8, '\x0808120c08aca796d80610a8b7f6fb022a36080110021a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c4001');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 9, '\x0809120c08aca796d8061098daca8b032acf01080110031a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c40014a5108ea3012403536376534383636653363396637323064383261313865633239373361623532333930343537636433393362626432376463333639636536393564653237393218402040280730073a02080152110a086b65796672616d65120510c096b10252100a0764656e6f697365120510c096b1025a0f0a0764656e6f6973651204080510075a0e0a066465636f6465120408051007');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 10, '\x080a120c08aca796d80610e8f7a7a303221a08041211412066696c6d206f6620646f75626c65731d3333733f');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 11, '\x080b120c08aca796d80610c8f6fcad03325108e35f12403737613835353530613161393538376562346533353663646436336638646139383033646239623063626138333965653838363332333865303638343564623018402040280e30073a020802');
INSERT INTO public.events VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 12, '\x080c120c08aca796d80610c8f6fcad03221a08051211412066696c6d206f6620646f75626c65731d0000803f');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 1, '\x0801120c08aca796d8061098c4e5bc0322020801');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 2, '\x0802120c08aca796d80610d882c8c60322020802');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 3, '\x0803120c08aca796d80610a883c1ca03221a08031211412066696c6d206f6620646f75626c65731dcdcccc3d');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 4, '\x0804120c08aca796d80610a883c1ca032a3210011a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba10');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 5, '\x0805120c08aca796d80610a883c1ca032a34080110011a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 6, '\x0806120b08ada796d80610e0bfc2172a3410021a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba104001');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 7, '\x0807120b08ada796d80610a0d0d1252acd0110031a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba1040014a5108d93012403034646634386361626132613566623266363666666536633465383664646364303439643661316330656632363735386661663862626437303830666264346318402040280730073a02080152110a086b65796672616d65120510c096b10252100a0764656e6f697365120510c096b1025a0f0a0764656e6f6973651204080510075a0e0a066465636f6465120408051007');
INSERT INTO public.events VALUES ('b3c6946d0717ae4ec269a722c10c0655', 8, '\x0808120b08ada796d80610b8eee4522a36080110021a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c4001');
INSERT INTO public.events VALUES ('e823a062077d9d193696f05810da5122', 1, '\x0801120b08ada796d80610f8bc9e5a22020801');
INSERT INTO public.events VALUES ('e823a062077d9d193696f05810da5122', 2, '\x0802120b08ada796d806109885976622020802');


--
-- Data for Name: films; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.films VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', '', 'finished', '3fcbfc48bfe3aa9b784b39817bc63d3ce6b81186cf1562692884adb857bf2334', 5, '', 1795527595568332, 12, '\x0a203535623165626334363161333263353932663263623666373165376231333236120866696e69736865641a0866696e6973686564220c08021040184020073001500328054211412066696c6d206f6620646f75626c6573525108e35f12403737613835353530613161393538376562346533353663646436336638646139383033646239623063626138333965653838363332333865303638343564623018402040280e30073a020802620c08aba796d80610e09d808f026a0c08aca796d80610c8f6fcad03720c08aca796d80610c8f6fcad037a0510e8c7af0582010f0a0770726566696c6c12040805100782010e0a066465636f64651204080510078a010510c8f28c409201051080b9d208');
INSERT INTO public.films VALUES ('b3c6946d0717ae4ec269a722c10c0655', '', 'rendering', '7b0316fe3a52690ecdd4edbdf95ecf9e8faa6e5897c698a92bca309043102a93', 3, '', 1795527596932766, 8, '\x0a206233633639343664303731376165346563323639613732326331306330363535120972656e646572696e671a0d68616c662072656e6465726564220c08021040184020073001500328034211412066696c6d206f6620646f75626c6573620c08aca796d80610b0c2e3bc036a0b08ada796d80610b8eee4527a0510a8b9a80282010f0a0770726566696c6c12040805100782010e0a066465636f6465120408051007');
INSERT INTO public.films VALUES ('e823a062077d9d193696f05810da5122', '', 'writing', '2b9aa7ae86d7b3fe4c77be234963e6ab17c2123853434c55f4ff5cf5d727f8d1', 2, '', 1795527597189210, 2, '\x0a206538323361303632303737643964313933363936663035383130646135313232120777726974696e671a0c68616c66207772697474656e220c0802104018402007300150032802620b08ada796d8061090bb9c5a6a0b08ada796d8061098859766');


--
-- Data for Name: scenes; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.scenes VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 0, '04df48caba2a5fb2f66ffe6c4e86ddcd049d6a1c0ef26758faf8bbd7080fbd4c', 1, 1795527596695195, 1795527596720040, '\x10031a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba1040014a5108d93012403034646634386361626132613566623266363666666536633465383664646364303439643661316330656632363735386661663862626437303830666264346318402040280730073a02080152110a086b65796672616d65120510c096b10252100a0764656e6f697365120510c096b1025a0f0a0764656e6f6973651204080510075a0e0a066465636f6465120408051007');
INSERT INTO public.scenes VALUES ('55b1ebc461a32c592f2cb6f71e7b1326', 1, '567e4866e3c9f720d82a18ec2973ab52390457cd393bbd27dc369ce695de2792', 1, 1795527596796780, 1795527596829624, '\x080110031a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c40014a5108ea3012403536376534383636653363396637323064383261313865633239373361623532333930343537636433393362626432376463333639636536393564653237393218402040280730073a02080152110a086b65796672616d65120510c096b10252100a0764656e6f697365120510c096b1025a0f0a0764656e6f6973651204080510075a0e0a066465636f6465120408051007');
INSERT INTO public.scenes VALUES ('b3c6946d0717ae4ec269a722c10c0655', 0, '04df48caba2a5fb2f66ffe6c4e86ddcd049d6a1c0ef26758faf8bbd7080fbd4c', 1, 1795527597049341, 1795527597078953, '\x10031a134e6172726174696f6e2030207b6f667d203235220970696374757265203028013202080138c6ba95e090d8f6ba1040014a5108d93012403034646634386361626132613566623266363666666536633465383664646364303439643661316330656632363735386661663862626437303830666264346318402040280730073a02080152110a086b65796672616d65120510c096b10252100a0764656e6f697365120510c096b1025a0f0a0764656e6f6973651204080510075a0e0a066465636f6465120408051007');
INSERT INTO public.scenes VALUES ('b3c6946d0717ae4ec269a722c10c0655', 1, '', 0.3, 1795527597173632, 0, '\x080110021a134e6172726174696f6e2031207b6f667d203235220970696374757265203128023202080138c9c2a8a3b8bde2fe2c4001');


--
-- Name: application_versions application_versions_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.application_versions
    ADD CONSTRAINT application_versions_pkey PRIMARY KEY (version_id);


--
-- Name: application_versions application_versions_version_name_key; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.application_versions
    ADD CONSTRAINT application_versions_version_name_key UNIQUE (version_name);


--
-- Name: dbos_migrations dbos_migrations_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.dbos_migrations
    ADD CONSTRAINT dbos_migrations_pkey PRIMARY KEY (version);


--
-- Name: event_dispatch_kv event_dispatch_kv_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.event_dispatch_kv
    ADD CONSTRAINT event_dispatch_kv_pkey PRIMARY KEY (service_name, workflow_fn_name, key);


--
-- Name: notifications notifications_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.notifications
    ADD CONSTRAINT notifications_pkey PRIMARY KEY (message_uuid);


--
-- Name: operation_outputs operation_outputs_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.operation_outputs
    ADD CONSTRAINT operation_outputs_pkey PRIMARY KEY (workflow_uuid, function_id);


--
-- Name: queues queues_name_key; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.queues
    ADD CONSTRAINT queues_name_key UNIQUE (name);


--
-- Name: queues queues_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (queue_id);


--
-- Name: streams streams_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (workflow_uuid, key, "offset");


--
-- Name: workflow_events_history workflow_events_history_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_events_history
    ADD CONSTRAINT workflow_events_history_pkey PRIMARY KEY (workflow_uuid, function_id, key);


--
-- Name: workflow_events workflow_events_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_events
    ADD CONSTRAINT workflow_events_pkey PRIMARY KEY (workflow_uuid, key);


--
-- Name: workflow_input workflow_input_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_input
    ADD CONSTRAINT workflow_input_pkey PRIMARY KEY (workflow_uuid);


--
-- Name: workflow_output workflow_output_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_output
    ADD CONSTRAINT workflow_output_pkey PRIMARY KEY (workflow_uuid);


--
-- Name: workflow_schedules workflow_schedules_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_schedules
    ADD CONSTRAINT workflow_schedules_pkey PRIMARY KEY (schedule_id);


--
-- Name: workflow_schedules workflow_schedules_schedule_name_key; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_schedules
    ADD CONSTRAINT workflow_schedules_schedule_name_key UNIQUE (schedule_name);


--
-- Name: workflow_status workflow_status_pkey; Type: CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_status
    ADD CONSTRAINT workflow_status_pkey PRIMARY KEY (workflow_uuid);


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (film_id, sequence_number);


--
-- Name: films films_owner_request_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.films
    ADD CONSTRAINT films_owner_request_id_key UNIQUE (owner, request_id);


--
-- Name: films films_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.films
    ADD CONSTRAINT films_pkey PRIMARY KEY (film_id);


--
-- Name: scenes scenes_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.scenes
    ADD CONSTRAINT scenes_pkey PRIMARY KEY (film_id, scene_index);


--
-- Name: idx_application_versions_owner_timestamp; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_application_versions_owner_timestamp ON dbos.application_versions USING btree (application_name, version_timestamp DESC);


--
-- Name: idx_application_versions_timestamp; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_application_versions_timestamp ON dbos.application_versions USING btree (version_timestamp DESC);


--
-- Name: idx_operation_outputs_completed_at_function_name_v2; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_operation_outputs_completed_at_function_name_v2 ON dbos.operation_outputs USING btree (completed_at_epoch_ms, function_name) INCLUDE (application_name);


--
-- Name: idx_operation_outputs_retention; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_operation_outputs_retention ON dbos.operation_outputs USING btree (retention_timestamp);


--
-- Name: idx_workflow_input_retention; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_input_retention ON dbos.workflow_input USING btree (retention_timestamp);


--
-- Name: idx_workflow_output_retention; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_output_retention ON dbos.workflow_output USING btree (retention_timestamp);


--
-- Name: idx_workflow_status_attributes; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_attributes ON dbos.workflow_status USING gin (attributes) WHERE (attributes IS NOT NULL);


--
-- Name: idx_workflow_status_completed_at; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_completed_at ON dbos.workflow_status USING btree (completed_at) WHERE (completed_at IS NOT NULL);


--
-- Name: idx_workflow_status_deadline; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_deadline ON dbos.workflow_status USING btree (workflow_deadline_epoch_ms) WHERE ((status = ANY (ARRAY['ENQUEUED'::text, 'PENDING'::text, 'DELAYED'::text])) AND (workflow_deadline_epoch_ms IS NOT NULL));


--
-- Name: idx_workflow_status_delayed; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_delayed ON dbos.workflow_status USING btree (delay_until_epoch_ms) WHERE (status = 'DELAYED'::text);


--
-- Name: idx_workflow_status_failed; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_failed ON dbos.workflow_status USING btree (status, created_at) WHERE (status = ANY (ARRAY['ERROR'::text, 'CANCELLED'::text, 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'::text]));


--
-- Name: idx_workflow_status_forked_from; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_forked_from ON dbos.workflow_status USING btree (forked_from) WHERE (forked_from IS NOT NULL);


--
-- Name: idx_workflow_status_in_flight_v2; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_in_flight_v2 ON dbos.workflow_status USING btree (queue_name, status, priority, created_at) INCLUDE (application_name) WHERE (status = ANY (ARRAY['ENQUEUED'::text, 'PENDING'::text]));


--
-- Name: idx_workflow_status_parent_workflow_id; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_parent_workflow_id ON dbos.workflow_status USING btree (parent_workflow_id) WHERE (parent_workflow_id IS NOT NULL);


--
-- Name: idx_workflow_status_partition_dequeue_v3; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_partition_dequeue_v3 ON dbos.workflow_status USING btree (queue_name, status, queue_partition_key, priority, created_at, workflow_uuid) INCLUDE (application_name) WHERE ((status = ANY (ARRAY['ENQUEUED'::text, 'PENDING'::text])) AND (queue_partition_key IS NOT NULL));


--
-- Name: idx_workflow_status_pending; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_pending ON dbos.workflow_status USING btree (created_at) WHERE (status = 'PENDING'::text);


--
-- Name: idx_workflow_status_rate_limited; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_rate_limited ON dbos.workflow_status USING btree (queue_name, started_at_epoch_ms) WHERE (rate_limited = true);


--
-- Name: idx_workflow_status_schedule_name; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_schedule_name ON dbos.workflow_status USING btree (schedule_name) WHERE (schedule_name IS NOT NULL);


--
-- Name: idx_workflow_status_started_at; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_status_started_at ON dbos.workflow_status USING btree (started_at_epoch_ms) WHERE (started_at_epoch_ms IS NOT NULL);


--
-- Name: idx_workflow_topic; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX idx_workflow_topic ON dbos.notifications USING btree (destination_uuid, topic);


--
-- Name: uq_application_versions_owner_version; Type: INDEX; Schema: dbos; Owner: -
--

CREATE UNIQUE INDEX uq_application_versions_owner_version ON dbos.application_versions USING btree (application_name, version_name) WHERE (application_name IS NOT NULL);


--
-- Name: uq_application_versions_unclaimed_version; Type: INDEX; Schema: dbos; Owner: -
--

CREATE UNIQUE INDEX uq_application_versions_unclaimed_version ON dbos.application_versions USING btree (version_name) WHERE (application_name IS NULL);


--
-- Name: uq_workflow_status_dedup_id; Type: INDEX; Schema: dbos; Owner: -
--

CREATE UNIQUE INDEX uq_workflow_status_dedup_id ON dbos.workflow_status USING btree (queue_name, deduplication_id) WHERE (deduplication_id IS NOT NULL);


--
-- Name: workflow_status_created_at_index; Type: INDEX; Schema: dbos; Owner: -
--

CREATE INDEX workflow_status_created_at_index ON dbos.workflow_status USING btree (created_at);


--
-- Name: films_by_create_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX films_by_create_time ON public.films USING btree (create_time_us, film_id);


--
-- Name: films_by_owner; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX films_by_owner ON public.films USING btree (owner, create_time_us, film_id);


--
-- Name: films_by_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX films_by_state ON public.films USING btree (state);


--
-- Name: ix_scenes_clip_sha256; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_scenes_clip_sha256 ON public.scenes USING btree (clip_sha256);


--
-- Name: notifications dbos_notifications_trigger; Type: TRIGGER; Schema: dbos; Owner: -
--

CREATE TRIGGER dbos_notifications_trigger AFTER INSERT ON dbos.notifications FOR EACH ROW EXECUTE FUNCTION dbos.notifications_function();


--
-- Name: notifications notifications_destination_uuid_fkey; Type: FK CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.notifications
    ADD CONSTRAINT notifications_destination_uuid_fkey FOREIGN KEY (destination_uuid) REFERENCES dbos.workflow_status(workflow_uuid) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: streams streams_workflow_uuid_fkey; Type: FK CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.streams
    ADD CONSTRAINT streams_workflow_uuid_fkey FOREIGN KEY (workflow_uuid) REFERENCES dbos.workflow_status(workflow_uuid) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: workflow_events_history workflow_events_history_workflow_uuid_fkey; Type: FK CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_events_history
    ADD CONSTRAINT workflow_events_history_workflow_uuid_fkey FOREIGN KEY (workflow_uuid) REFERENCES dbos.workflow_status(workflow_uuid) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: workflow_events workflow_events_workflow_uuid_fkey; Type: FK CONSTRAINT; Schema: dbos; Owner: -
--

ALTER TABLE ONLY dbos.workflow_events
    ADD CONSTRAINT workflow_events_workflow_uuid_fkey FOREIGN KEY (workflow_uuid) REFERENCES dbos.workflow_status(workflow_uuid) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- PostgreSQL database dump complete
--

\unrestrict A0siuWqnIZVDFjPWso6BXIUaFlfBX15JnoARN21z75QQ4hebglTb14Mlguy5hAi

